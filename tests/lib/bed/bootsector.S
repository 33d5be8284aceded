# SPDX-License-Identifier: LGPL-2.1-only
# The boot sector of an HVM guest (tests/lib/hvm.py): uses the disk it came from by the BIOS and tells COM1.
#
# Prints the line of text in sector READ_LEAF and that in READ_BASE, writes the latter to sector WRITE_FLUSHED, reads
# it back and prints it, has the drive flush its cache, writes what it read to sector WRITE_CACHED, and halts.
	.code16
	.set COM1, 0x3f8
	.set ATA_DRIVE, 0x1f6
	.set ATA_COMMAND, 0x1f7
	.set FLUSH_CACHE, 0xe7
	.set BUFFER, 0x8000
	.set SECOND, 0x8200

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

	movl $READ_LEAF, %ebx
	movb $0x42, %ah
	call disk
	movw $leaf, %si
	call say_sector
	movl $READ_BASE, %ebx
	movb $0x42, %ah
	call disk
	movw $base, %si
	call say_sector

	movl $WRITE_FLUSHED, %ebx
	movb $0x43, %ah
	call disk
	movw $SECOND, buffer
	movb $0x42, %ah
	call disk
	movw $back, %si
	call say_sector
	call flush
	movw $flushed, %si
	call say

	movl $WRITE_CACHED, %ebx
	movb $0x43, %ah
	call disk
	movw $done, %si
	call say
# with interrupts off Xen would take the halt for a shutdown
halt:
	sti
	hlt
	jmp halt

# Sector %ebx from (%ah 0x42) or to (0x43) the buffer.
disk:
	movl %ebx, lba
	movw $packet, %si
	movb drive, %dl
	xorb %al, %al
	int $0x13
	jc failed
	ret

# The BIOS has no call for it.
flush:
	cli
	movw $ATA_DRIVE, %dx
	movb $0xe0, %al
	outb %al, %dx
	movw $ATA_COMMAND, %dx
	movb $FLUSH_CACHE, %al
	outb %al, %dx
1:	inb %dx, %al
	testb $0x80, %al
	jnz 1b
	sti
	testb $0x21, %al
	jnz failed
	ret

failed:
	movw $error, %si
	call say
	jmp halt

# The word at %si, then the buffer.
say_sector:
	call say
	movw buffer, %si
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
leaf:	.asciz "boot: leaf "
base:	.asciz "boot: base "
back:	.asciz "boot: back "
flushed: .asciz "boot: flushed\n"
done:	.asciz "boot: done\n"
error:	.asciz "boot: failed\n"
drive:	.byte 0

	.balign 4
packet:	.byte 16, 0
	.word 1
buffer:	.word BUFFER, 0
lba:	.long 0, 0

	.org 510
	.word 0xaa55
