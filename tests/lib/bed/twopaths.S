# SPDX-License-Identifier: LGPL-2.1-only
# The boot sector of an HVM guest (tests/lib/hvm.py) whose disk somebody else uses too, as a PV driver does.
#
# At each character that COM1 gets: r reads sector SHARED and prints its line of text, w writes what was read last to
# sector COPY, without a flush, u has QEMU unplug the emulated disks (docs/misc/hvm-emulated-unplug.pandoc of Xen).
	.code16
	.set COM1, 0x3f8
	.set UNPLUG, 0x10
	.set MAGIC, 0x49d2
	.set IDE_DISKS, 1
	.set BUFFER, 0x8000

	.globl _start
_start:
	ljmp $0, $begin
begin:
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movw $0x7c00, %sp
	cld
	sti
	movb %dl, drive
	movw $began, %si
	call say
# Looks at each tick of the timer: each look is work for QEMU.
next:
	sti
	hlt
	movw $COM1 + 5, %dx
	inb %dx, %al
	testb $1, %al
	jz next
	movw $COM1, %dx
	inb %dx, %al
	cmpb $'r', %al
	je read
	cmpb $'w', %al
	je write
	cmpb $'u', %al
	je unplug
	jmp next

read:
	movl $SHARED, lba
	movb $0x42, %ah
	call disk
	movw $has, %si
	call say
	movw $BUFFER, %si
	call say
	jmp next
write:
	movl $COPY, lba
	movb $0x43, %ah
	call disk
	movw $wrote, %si
	call say
	jmp next
unplug:
	movw $UNPLUG, %dx
	inw %dx, %ax
	cmpw $MAGIC, %ax
	jne failed
	movw $IDE_DISKS, %ax
	outw %ax, %dx
	movw $gone, %si
	call say
	jmp next

disk:
	movw $packet, %si
	movb drive, %dl
	xorb %al, %al
	int $0x13
	jc failed
	ret

failed:
	movw $error, %si
	call say
# with interrupts off Xen would take the halt for a shutdown
halt:
	sti
	hlt
	jmp halt

# The text at %si, to a NUL or past a newline.
say:
	lodsb
	testb %al, %al
	jz 2f
	movb %al, %cl
	movw $COM1 + 5, %dx
1:	inb %dx, %al
	testb $0x20, %al
	jz 1b
	movw $COM1, %dx
	movb %cl, %al
	outb %al, %dx
	cmpb $'\n', %al
	jne say
2:	ret

began:	.asciz "boot: begin\n"
has:	.asciz "boot: has "
wrote:	.asciz "boot: wrote\n"
gone:	.asciz "boot: unplugged\n"
error:	.asciz "boot: failed\n"
drive:	.byte 0

	.balign 4
packet:	.byte 16, 0
	.word 1
	.word BUFFER, 0
lba:	.long 0, 0

	.org 510
	.word 0xaa55
