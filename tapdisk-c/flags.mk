# SPDX-License-Identifier: LGPL-2.1-only
# What all our C programs are compiled with, by MODE.

WARN    := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	   -Wpointer-arith -Wcast-align=strict -Wwrite-strings -Wundef -Wformat=2 \
	   -Wconversion -Wsign-conversion -Wno-gnu-statement-expression -Wvla -Wswitch-enum -Werror
CFLAGS_release := -O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong
CFLAGS_asan    := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
