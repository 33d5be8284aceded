# The unit tests and the inputs of fuzz/corpus on other machines: nothing may depend on
# the byte order, on the width of long, size_t and time_t, or on how structs are padded.
#
#   make check-cross     arm64; i386: 32 bits; s390x: big-endian
#   make check-arm64     one of them
#
# With Debian's cross compilers. Libraries are taken from Debian's packages for that machine,
# unpacked in the cache (tests/lib/sysroot.py); the C library is the compiler's own. The build traps
# undefined behaviour. qemu-user runs the programs, the kernel itself those for i386 if it can.
#
# What lacks: XENBLK_TESTS_LACK.
#   io_uring   qemu-user has no io_uring_setup (ENOSYS): the tests "(uring)" of test-align, test-engine*,
#              test-fault-engine, test-lend and test-nbd* are left out. The engine posix runs all that both run.
#   signals    qemu-i386 7.2 crashes in malloc() after many signals: signal_does_not_end_the_wait

machines := arm64 i386 s390x
PYTHON   ?= /usr/bin/python3

triple_arm64 := aarch64-linux-gnu
triple_i386  := i686-linux-gnu
triple_s390x := s390x-linux-gnu
loader_arm64 := ld-linux-aarch64.so.1
loader_i386  := ld-linux.so.2
loader_s390x := ld64.so.1
# where Debian has a machine's libraries
libdir_arm64 := aarch64-linux-gnu
libdir_i386  := i386-linux-gnu
libdir_s390x := s390x-linux-gnu
run_arm64    := qemu-aarch64
run_i386     := qemu-i386
run_s390x    := qemu-s390x
lack_arm64   := io_uring
lack_i386    := io_uring signals
lack_s390x   := io_uring
loader_of     = /usr/$(triple_$(1))/lib/$(loader_$(1))

ifneq ($(filter check-cross check-i386,$(MAKECMDGOALS)),)
ifeq ($(shell $(call loader_of,i386) --version >/dev/null 2>&1 && echo runs),runs)
run_i386     :=
lack_i386    :=
endif
endif

check-cross: $(addprefix check-,$(machines))

$(addprefix check-,$(machines)): check-%:
	@root=$$(cd $(here)/.. && $(PYTHON) -m tests.lib.sysroot $*) && \
	lib=$$root/usr/lib/$(libdir_$*) && \
	PKG_CONFIG_LIBDIR=$$lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$$root XENBLK_TESTS_LACK="$(lack_$*)" \
	$(MAKE) --no-print-directory -C $(here) check BUILD=$(BUILD)/$* MODE=trap CROSS=$(triple_$*)- \
		FUZZ_RUNS=1000 FUZZ_RUNS_SLOW=100 PKG_CONFIG=pkg-config RUN="$(run_$*)" ON="$* " CPPFLAGS="-isystem $$root/usr/include" \
		LDFLAGS="-L$$lib -Wl,-rpath,$$lib:/usr/$(triple_$*)/lib -Wl,--dynamic-linker=$(call loader_of,$*)"

.PHONY: check-cross $(addprefix check-,$(machines))
