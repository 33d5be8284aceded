# xenblk: see README.md.
#
#   make             build the programs and the Python bridge
#   make module      build blktap.ko for the running kernel (KDIR= for another)
#   make demo        on a bare Debian 12: xl create of a guest on a VHD chain, shown step by step
#   make test        on a bare Debian 12: the tests, an hour or more; DEEP=1 adds the long ones
#   make check       of these, what boots nothing
#   make soak        fuzz executions by the million, crash states, kills; can be stopped, goes on: docs/testing.md
#   make check-kernels   the driver's tests under kernels with KASAN, lockdep, kmemleak and KCSAN: docs/testing.md
#   make check-xen   the tests on Xen, on Debian 12 and on Debian 13: docs/matrix.md; XEN=DIR for one built from source
#   make check-ioemu the series for the QEMUs of Debian 12 and 13 on Debian's sources, built and asked: docs/ioemu.md
#   make bench       our NBD server and vhd-util against others; QUICK=1 in four minutes; see docs/performance.md
#   make install     DESTDIR= prefix= sysconfdir=
#   make uninstall   FORCE=1 while disks are served; README.md has what to do before
#   make deps        the packages that building needs; make lint, make clean
#   make install-dkms, make uninstall-dkms      the driver's source for DKMS, which builds it for each kernel; DESTDIR=

prefix     ?= /usr
sysconfdir ?= /etc
unitdir    ?= $(prefix)/lib/systemd/system
sbindir    := $(prefix)/sbin
pkglib     := $(prefix)/lib/xenblk
# Where libxl looks for block scripts.
scriptdir  := $(sysconfdir)/xen/scripts
BUILD      := $(CURDIR)/build
MODE       ?= release
# The Python of the system, which the installed programs run on.
PYTHON     ?= /usr/bin/python3
KDIR       ?= /lib/modules/$(shell uname -r)/build
JOBS       ?= $(shell nproc)
# The quick tiers mostly wait, so more of their tests run at once than there are processors.
AT_ONCE    ?= $(shell expr $$(nproc) + 1)
# Tests in beds without Xen wait half of their time.
BEDS_AT_ONCE ?= $(shell nproc)

bin    := $(BUILD)/$(MODE)/tapdisk-c
pybuild := $(BUILD)/python
man    := $(BUILD)/man
pods   := $(wildcard tapdisk-c/man/*.pod docs/man/*.pod)
# section 8 but for file formats, which say so in their name
manname = $(if $(findstring .yaml,$(1)),$(1).5,$(1).8)
pages  := $(foreach p,$(pods),$(man)/$(call manname,$(basename $(notdir $(p)))))

# What an installed file says of where the others are.
places := -e 's|@pkglib@|$(pkglib)|g; s|@sbindir@|$(sbindir)|g' \
	  -e '/^PATH=/s|/usr/sbin|$(sbindir)|' -e '/^VBD=/s|/usr|$(prefix)|' -e '/^YAML_PATH/s|/etc|$(sysconfdir)|' \
	  -e '/^\(TAP_CTL\|XL\) =/s|/usr/sbin|$(sbindir)|; /^VHD_UTIL =/s|/usr|$(prefix)|'

# In one step, since Xen may call it meanwhile.
script = sed $(places) $(1) > $(DESTDIR)$(2).new && chmod 755 $(DESTDIR)$(2).new && mv $(DESTDIR)$(2).new $(DESTDIR)$(2)
program = install -m 755 $(1) $(DESTDIR)$(2)/$(notdir $(1)).new && mv $(DESTDIR)$(2)/$(notdir $(1)).new $(DESTDIR)$(2)/$(notdir $(1))

package = $(DESTDIR)$(pkglib)/xenblk

all: programs bridge $(pages)

programs:
	@$(MAKE) --no-print-directory -j$(JOBS) -C tapdisk-c MODE=$(MODE) BUILD=$(BUILD)

vbd:
	@$(MAKE) --no-print-directory -C hotplug-scripts/vbd MODE=$(MODE) BUILD=$(BUILD)

# The binding belongs to one release of Xen.
stamp := $(pybuild)/stamp-$(shell pkg-config --modversion xenlight 2>/dev/null)
bridge: $(stamp) vbd
$(stamp): $(wildcard xenblk/*.py)
	@printf '  %-4s %s\n' PY libxl
	@rm -rf $(pybuild) && mkdir -p $(pybuild)
	@$(PYTHON) -m xenblk._libxl_build $(pybuild)
	@touch $@

define manrule
$(man)/$(call manname,$(basename $(notdir $(1)))): $(1)
	@mkdir -p $$(@D)
	@pod2man --utf8 --errors=die --center=xenblk --release=$(shell cat VERSION) \
		--name=$$(shell echo $(basename $(notdir $(1))) | tr a-z A-Z) \
		--section=$$(patsubst .%,%,$$(suffix $$@)) $$< $$@
endef
$(foreach p,$(pods),$(eval $(call manrule,$(p))))

module:
	@$(MAKE) --no-print-directory -C kernel-patches KDIR=$(KDIR) OUT=$(BUILD)/module

# Byte-compiled, since xl create waits for it; by hash, so that no clock and no copy makes the result stale.
install: all
	install -d $(DESTDIR)$(sbindir) $(DESTDIR)$(prefix)/bin $(DESTDIR)$(prefix)/libexec \
		$(DESTDIR)$(scriptdir) $(DESTDIR)$(unitdir) $(DESTDIR)$(prefix)/lib/udev/rules.d \
		$(DESTDIR)$(prefix)/lib/tmpfiles.d $(DESTDIR)$(prefix)/lib/modules-load.d \
		$(DESTDIR)$(prefix)/share/man/man8 $(DESTDIR)$(prefix)/share/man/man5
	$(call program,$(bin)/tap-ctl,$(sbindir))
	sh hotplug-scripts/set-aside-xl add '$(DESTDIR)' '$(prefix)'
	$(call program,$(bin)/xl,$(sbindir))
	$(call program,$(bin)/vhd-util,$(prefix)/bin)
	$(call program,$(bin)/tapdisk,$(prefix)/libexec)
	$(call program,$(BUILD)/$(MODE)/vbd/xenblk-vbd,$(prefix)/libexec)
	rm -rf $(package).new $(package).old && install -d $(package).new
	install -m 644 $(filter-out %_build.py,$(wildcard xenblk/*.py)) $(pybuild)/*.so $(package).new/
	for name in config xlcall; do \
		sed $(places) xenblk/$$name.py > $(package).new/$$name.py || exit; \
	done
	$(PYTHON) -m compileall -q --invalidation-mode checked-hash -s $(package).new -p $(pkglib)/xenblk $(package).new
	chmod -R a+rX $(package).new
	if [ -e $(package) ]; then mv $(package) $(package).old; fi && mv $(package).new $(package) && rm -rf $(package).old
	$(call script,hotplug-scripts/xenblk.in,$(sbindir)/xenblk)
	$(call script,hotplug-scripts/block-xenblk,$(scriptdir)/block-xenblk)
	$(call script,hotplug-scripts/xmsnap.in,$(sbindir)/xmsnap)
	test -e $(DESTDIR)$(sysconfdir)/xen/xenblk.yaml || \
		install -m 644 hotplug-scripts/xenblk.yaml $(DESTDIR)$(sysconfdir)/xen/
	for name in xenblk xenblk-gc; do \
		sed $(places) hotplug-scripts/systemd/$$name.service.in > $(DESTDIR)$(unitdir)/$$name.service || exit; \
		chmod 644 $(DESTDIR)$(unitdir)/$$name.service; \
	done
	install -m 644 hotplug-scripts/systemd/xenblk-gc.timer $(DESTDIR)$(unitdir)/
	install -m 644 hotplug-scripts/tmpfiles.d/xenblk.conf $(DESTDIR)$(prefix)/lib/tmpfiles.d/
	install -m 644 hotplug-scripts/modules-load.d/xenblk.conf $(DESTDIR)$(prefix)/lib/modules-load.d/
	install -m 644 hotplug-scripts/udev/59-xenblk.rules $(DESTDIR)$(prefix)/lib/udev/rules.d/
	install -m 644 $(filter %.8,$(pages)) $(DESTDIR)$(prefix)/share/man/man8/
	install -m 644 $(filter %.5,$(pages)) $(DESTDIR)$(prefix)/share/man/man5/

# systemd knows the unit that is removed here, not one of another prefix.
ours = [ -z '$(DESTDIR)' ] && [ "$$(systemctl show -p FragmentPath --value xenblk.service 2>/dev/null)" -ef '$(unitdir)/xenblk.service' ]

# The configuration stays: it may have been edited. Disks that are served need what this removes, to be detached and to outlive a tapdisk.
uninstall:
	@set -- $(DESTDIR)/run/blktap-control/disk.*; if [ -e "$$1" ] && [ -z '$(FORCE)' ]; then \
		echo "make uninstall: $$# disks are served (xenblk ls); shut their guests down first, or see tap-ctl(8), destroy. FORCE=1 uninstalls all the same" >&2; \
		exit 1; fi
	reload=:; if $(ours); then \
		systemctl --quiet disable --now xenblk.service xenblk-gc.timer; reload='systemctl daemon-reload'; fi; \
	rm -f $(foreach unit,xenblk.service xenblk-gc.service xenblk-gc.timer,$(DESTDIR)$(unitdir)/$(unit)); $$reload
	sh hotplug-scripts/set-aside-xl remove '$(DESTDIR)' '$(prefix)'
	rm -f $(DESTDIR)$(sbindir)/tap-ctl $(DESTDIR)$(prefix)/bin/vhd-util \
		$(DESTDIR)$(prefix)/libexec/tapdisk $(DESTDIR)$(prefix)/libexec/xenblk-vbd $(DESTDIR)$(sbindir)/xenblk $(DESTDIR)$(sbindir)/xmsnap \
		$(DESTDIR)$(scriptdir)/block-xenblk \
		$(DESTDIR)$(prefix)/lib/tmpfiles.d/xenblk.conf \
		$(DESTDIR)$(prefix)/lib/modules-load.d/xenblk.conf \
		$(DESTDIR)$(prefix)/lib/udev/rules.d/59-xenblk.rules \
		$(patsubst $(man)/%,$(DESTDIR)$(prefix)/share/man/man*/%,$(pages))
	rm -rf $(DESTDIR)$(pkglib)
	@echo "xenblk is gone: Xen's xl gives tap: disks to QEMU, which writes into differencing VHDs; change the guests' configurations first" >&2

install-dkms uninstall-dkms:
	@$(MAKE) --no-print-directory -C kernel-patches $@

# Installs what is missing, as root; says what to install otherwise.
deps:
	@.ci/deps build
demo-deps:
	@.ci/deps demo
test-deps:
	@.ci/deps test
bench-deps:
	@.ci/deps bench
soak-deps:
	@.ci/deps soak
kernels-deps:
	@.ci/deps kernels
ioemu-deps:
	@.ci/deps ioemu

demo: demo-deps
	@$(MAKE) --no-print-directory all
	@$(PYTHON) -m tests.demo

# The quick tiers run on the sanitizer build, the beds on the release build.
share = $(if $(DEEP),,-m 'not deep')
test: check
	@$(PYTHON) -m pytest -n $(BEDS_AT_ONCE) --dist loadfile $(share) tests/vm
	@$(PYTHON) -m pytest $(share) tests/xen

# All of `make test` that boots nothing: before each commit.
check: test-deps
	@$(PYTHON) -m tests.lib.room
	@$(MAKE) --no-print-directory all
	@$(MAKE) --no-print-directory -j$(JOBS) -C tapdisk-c MODE=asan BUILD=$(BUILD)
	@$(MAKE) --no-print-directory -C hotplug-scripts/vbd MODE=asan BUILD=$(BUILD)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory -C tapdisk-c check BUILD=$(BUILD)
	@$(MAKE) --no-print-directory -j$(JOBS) -C tapdisk-c check-cross BUILD=$(BUILD)
	@$(MAKE) --no-print-directory -C kernel-patches check
	@$(PYTHON) -m pytest -n $(AT_ONCE) tests/unit tests/io

# BENCH_ARGS: more of `python3 -m tests.perf --help`.
bench: bench-deps
	@$(MAKE) --no-print-directory -C tapdisk-c MODE=release BUILD=$(BUILD)
	@$(PYTHON) -m tests.perf $(if $(QUICK),--quick) $(BENCH_ARGS)

# SOAK_ARGS: more of `python3 -m tests.soak --help`.
soak: soak-deps
	@$(PYTHON) -m tests.soak $(SOAK_ARGS)

# KERNELS_ARGS: more of `python3 -m tests.kernels --help`.
check-kernels: kernels-deps
	@$(MAKE) --no-print-directory all
	@$(PYTHON) -m tests.kernels $(KERNELS_ARGS)

# XEN: the tree that `make install` of a Xen built from source left. MATRIX_ARGS: more of `python3 -m tests.matrix --help`.
check-xen: test-deps
	@$(MAKE) --no-print-directory all
	@$(PYTHON) -m tests.matrix $(if $(XEN),--xen=$(XEN)) $(MATRIX_ARGS)

# The first time some ten minutes for each. QEMU_TRAD: a clone of xenserver/qemu-xen-4.2, whose series is then checked too.
check-ioemu: ioemu-deps
	@$(MAKE) --no-print-directory all
	@for release in 12 13; do \
		$(PYTHON) -m tests.ioemu.qemu --release=$$release && $(PYTHON) -m tests.ioemu.inbed --release=$$release || exit 1; \
	done
	@$(if $(QEMU_TRAD),$(PYTHON) -m tests.ioemu.trad $(QEMU_TRAD))

lint:
	@shellcheck .ci/run .ci/deps hotplug-scripts/block-xenblk \
		hotplug-scripts/set-aside-xl hotplug-scripts/xmsnap.in
	@mypy --strict xenblk tests kernel-patches/patchseries

clean:
	rm -rf $(BUILD)

.PHONY: all programs vbd bridge module install uninstall install-dkms uninstall-dkms deps demo-deps test-deps bench-deps soak-deps kernels-deps ioemu-deps demo test check bench soak check-kernels check-xen check-ioemu lint clean
