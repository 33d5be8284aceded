# SPDX-License-Identifier: LGPL-2.1-only
# The boot sector of an HVM guest (tests/lib/hvm.py): uses the disk it came from by the BIOS and tells COM1.
#
# Prints the line of text in sector READ_LEAF and that in READ_BASE, writes the latter to sector WRITE_FLUSHED, reads
# it back and prints it, has the drive flush its cache, writes what it read to sector WRITE_CACHED, and halts.
	.include "bios.inc"
	.set ATA_DRIVE, 0x1f6
	.set ATA_COMMAND, 0x1f7
	.set FLUSH_CACHE, 0xe7
	.set SECOND, 0x8200

main:
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
	jmp halt

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

# The word at %si, then the buffer.
say_sector:
	call say
	movw buffer, %si
	jmp say

leaf:	.asciz "boot: leaf "
base:	.asciz "boot: base "
back:	.asciz "boot: back "
flushed: .asciz "boot: flushed\n"
done:	.asciz "boot: done\n"

	.org 510
	.word 0xaa55
