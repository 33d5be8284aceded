# SPDX-License-Identifier: LGPL-2.1-only
# The boot sector of an HVM guest (tests/lib/hvm.py) whose disk somebody else uses too, as a PV driver does.
#
# At each character that COM1 gets: r reads sector SHARED and prints its line of text, w writes what was read last to
# sector COPY, without a flush, u has QEMU unplug the emulated disks (docs/misc/hvm-emulated-unplug.pandoc of Xen), q shuts
# the guest down, as Xen takes a halt with interrupts off.
	.include "bios.inc"
	.set UNPLUG, 0x10
	.set MAGIC, 0x49d2
	.set IDE_DISKS, 1

# Looks at each tick of the timer: each look is work for QEMU.
main:
	sti
	hlt
	movw $COM1 + 5, %dx
	inb %dx, %al
	testb $1, %al
	jz main
	movw $COM1, %dx
	inb %dx, %al
	cmpb $'r', %al
	je read
	cmpb $'w', %al
	je write
	cmpb $'u', %al
	je unplug
	cmpb $'q', %al
	jne main
	cli
	hlt

read:
	movl $SHARED, %ebx
	movb $0x42, %ah
	call disk
	movw $has, %si
	call say
	movw $BUFFER, %si
	jmp told
write:
	movl $COPY, %ebx
	movb $0x43, %ah
	call disk
	movw $wrote, %si
	jmp told
unplug:
	movw $UNPLUG, %dx
	inw %dx, %ax
	cmpw $MAGIC, %ax
	jne failed
	movw $IDE_DISKS, %ax
	outw %ax, %dx
	movw $gone, %si
told:
	call say
	jmp main

has:	.asciz "boot: has "
wrote:	.asciz "boot: wrote\n"
gone:	.asciz "boot: unplugged\n"

	.org 510
	.word 0xaa55
