# SPDX-License-Identifier: GPL-2.0-only
# One door:
#   make            vqlaned, vqlane, the BPF objects and the man pages, in build/
#   make demo       set up, build, and serve a disk to a QEMU guest (README, command 1)
#   make test       set up, build, and run every test (README, command 2)
#   make quick      while at work: what changed is compiled, unit tests and the quick rules of make check
#   make unit       the unit tests; T='[vring]' chooses some (make e2e T=… the end-to-end ones)
#   make kmod       the kernel module, build/kmod/vqlane.ko, for KDIR (default: Debian's Linux 6.12)
#   make vm-test    module, daemon and guests in a VM with NVMe drives; CASE=name runs one
#   make torture    kills the daemon at random moments, TORTURE_KILLS times (default 10000) over vhost-user and,
#                   in a VM, TORTURE_VM_KILLS times (default 500) in each lane of vDPA disks; hours, and a report
#   make demo-host  the same as one story, told as it goes
#   make bench      vqlaned beside its peer and the floor: a table, and build/bench/report.html
#   make check      formatting, lint, licences, include directions
#   make fuzz       libFuzzer targets, FUZZ_SECONDS each (default 60)
#   make install    into DESTDIR/PREFIX; make install-kmod: the module's sources, for dkms; uninstall, uninstall-kmod
#   make clean
# Variables: SAN=address,undefined or SAN=thread builds with sanitizers (in build/asan, build/tsan);
# KERNEL=debug takes a kernel that checks itself (KASAN, lockdep, kmemleak) for kmod and vm-test;
# BENCH="null interrupts file scale vm" chooses parts of the bench (vm only by name), BENCH_SECONDS and
# BENCH_ROUNDS how long they take;
# CXX, CC, CLANG; V=1 shows commands; TESTS=unit|e2e|guest|bench runs a part of the tests.

CXX ?= g++
CC ?= gcc
CLANG ?= clang
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60
Q = $(if $(V),,@)

ifeq ($(origin CXX),default)
# gcc takes three fifths more for AddressSanitizer and UBSan.
CXX = $(if $(findstring address,$(SAN)),clang++,g++)
endif
ifeq ($(origin CC),default)
CC = $(if $(findstring address,$(SAN)),clang,gcc)
endif

TOP := $(CURDIR)
# What was built, told by --version and modinfo.
VERSION := $(or $(shell git -C $(TOP) describe --always --dirty --tags 2>/dev/null),unknown)
ifeq ($(SAN),)
BUILD := $(TOP)/build
else ifneq ($(findstring thread,$(SAN)),)
BUILD := $(TOP)/build/tsan
# gcc warns that TSan does not model fences; the fences in barrier.h order atomics only, so that
# nothing TSan reports depends on them.
SANFLAGS := -fsanitize=$(SAN) -fno-omit-frame-pointer $(if $(findstring clang,$(CXX)),,-Wno-tsan)
else
BUILD := $(TOP)/build/asan
SANFLAGS := -fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer
endif
SANFLAGS += $(if $(SAN),-DVQL_SANITIZED)
export VQL_BUILD := $(BUILD)

WARN := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror
CPPFLAGS += -Iinclude -Iinclude/uapi -Iuserspace -Itests
# Sanitizer builds are for finding bugs, and so are tests: what costs is to make them. UBSan's checks take the optimizer as
# long as all the rest.
CXXFLAGS ?= $(if $(SAN),$(if $(findstring thread,$(SAN)),-O1,-O0) -g1,-O2 -g)
TEST_CXXFLAGS ?= $(if $(SAN),,-O1 -g1)
# clang's -Wconversion includes -Wsign-conversion; gcc's does not in C++.
VQL_CXXFLAGS = -std=c++20 $(WARN) -Wno-sign-conversion $(CXXFLAGS) $(SANFLAGS) -pthread
VQL_CFLAGS = -std=c11 $(WARN) $(CXXFLAGS) $(SANFLAGS)
BPF_CFLAGS := -target bpf -O2 -g -Wall -Wextra -Werror -Iinclude -Ibpf \
	-I/usr/include/$(shell $(CC) -print-multiarch)

# The target as make has it: a compiler's wrapper may write another name for it, and then no header would count.
DEPFLAGS = -MMD -MP -MT $@

DAEMON_LIBS := -luring -lbpf -lsystemd
BPF_SRC := $(wildcard bpf/*.bpf.c bpf/examples/*.bpf.c tests/bpf/*.bpf.c)
BASE_SRC := $(wildcard userspace/base/*.cc)
# In userspace/ebpf/, the command's.
TRACE_SRC := userspace/ebpf/trace.cc
DAEMON_SRC := $(filter-out %/main.cc,$(wildcard userspace/daemon/*.cc)) \
	$(wildcard userspace/frontend/*.cc userspace/engine/*.cc) $(filter-out $(TRACE_SRC),$(wildcard userspace/ebpf/*.cc))
# The tests' driver without the tests, and a load made of it: what `vqlane bench` measures with.
LOAD_SRC := tests/bench/load.cc tests/bench/report.cc $(addprefix tests/guest/,guest_memory.cc posix.cc \
	vhost_user_client.cc vhost_user_transport.cc vhost_vdpa_client.cc vhost_vdpa_transport.cc)
CLI_SRC := $(filter-out %/main.cc,$(wildcard userspace/cli/*.cc)) $(TRACE_SRC) $(LOAD_SRC)
UNIT_SRC := $(wildcard tests/unit/*.cc tests/bpf/*.cc) tests/fuzz/ring_fuzz.cc tests/fuzz/vhost_user_fuzz.cc
UNIT_C := $(wildcard tests/unit/*.c)
GUEST_SRC := $(wildcard tests/guest/*.cc)
FUZZ := ring vhost_user

obj = $(patsubst %,$(BUILD)/obj/%.o,$(basename $(1)))
# A program's own objects. With sanitizers, those of a folder of userspace/ are one, made of all its files at once: most of
# a file's compilation is what it includes. So names must differ within a folder, even file-local ones. By itself is what
# has flags of its own, and what only one program has.
SINGLE := %/main.cc $(TRACE_SRC) userspace/base/version.cc $(filter tests/%,$(LOAD_SRC))
FOLDER_SRC = $(filter-out $(SINGLE),$(wildcard userspace/$*/*.cc))
objects = $(if $(SAN),$(call obj,$(filter $(SINGLE),$(1))) \
	$(patsubst userspace/%/,$(BUILD)/folder/%.o,$(sort $(dir $(filter-out $(SINGLE),$(1))))),$(call obj,$(1)))
BPF_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(BPF_SRC))
PROGRAMS := $(BUILD)/vqlaned $(BUILD)/vqlane
# vqlane.1 and so on, of userspace/man/vqlane.1.scd.
MAN := $(patsubst userspace/man/%.scd,$(BUILD)/man/%,$(wildcard userspace/man/*.scd))
TEST_PROGRAMS := $(BUILD)/tests/unit_test $(BUILD)/tests/e2e_test
BENCH_PROGRAMS := $(BUILD)/tests/bench $(BUILD)/tests/poll_cost

# tests/vm/policies.bpf.c, once for each.
POLICIES := $(patsubst %,$(BUILD)/tests/vm/policies/%.bpf.o,quiet straight slot sector reserved straddle forged task \
	endless newer sleepable empty no_op named two copy beyond stranger)
VM_PROGRAMS := $(patsubst tests/vm/programs/%.c,$(BUILD)/tests/vm/%,$(wildcard tests/vm/programs/*.c)) \
	$(BUILD)/tests/vm/bootsector $(POLICIES) $(BUILD)/tests/vm/reader

.PHONY: all tests vm-programs bench-programs setup demo test unit e2e quick kmod vm-build vm-test torture demo-host bench check fuzz install install-kmod uninstall uninstall-kmod clean FORCE
.DELETE_ON_ERROR:
.SECONDARY:

all: $(PROGRAMS) $(BPF_OBJ) $(MAN)
tests: $(TEST_PROGRAMS) $(BUILD)/compile_commands.json
vm-programs: $(VM_PROGRAMS)
bench-programs: $(BENCH_PROGRAMS)

# Objects are made again when the way they are made changes.
$(BUILD)/flags: FORCE
	$(Q)mkdir -p $(BUILD)
	$(Q)echo '$(CXX) $(CC) $(CPPFLAGS) $(VQL_CXXFLAGS) $(TEST_CXXFLAGS) $(BPF_CFLAGS) $(DEPFLAGS)' | cmp -s - $@ || \
		echo '$(CXX) $(CC) $(CPPFLAGS) $(VQL_CXXFLAGS) $(TEST_CXXFLAGS) $(BPF_CFLAGS) $(DEPFLAGS)' > $@

$(BUILD)/obj/%.o: %.cc $(BUILD)/flags
	@echo "  CXX   $<"
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CPPFLAGS) $(VQL_CXXFLAGS) $(if $(filter %_test.cc,$<),$(TEST_CXXFLAGS)) $(EXTRA) $(DEPFLAGS) -c $< -o $@

# Those that have C++ files.
FOLDERS := $(filter-out README.md man,$(notdir $(wildcard userspace/*)))
$(FOLDERS:%=$(BUILD)/folder/%.cc): $(BUILD)/folder/%.cc: FORCE
	$(Q)mkdir -p $(@D)
	$(Q)printf '#include "%s"\n' $(FOLDER_SRC:userspace/%=%) | cmp -s - $@ || printf '#include "%s"\n' $(FOLDER_SRC:userspace/%=%) > $@

# -Wno-shadow: a local name may be one of another file, too.
$(FOLDERS:%=$(BUILD)/folder/%.o): $(BUILD)/folder/%.o: $(BUILD)/folder/%.cc $(BUILD)/flags
	@echo "  CXX   userspace/$*/"
	$(Q)$(CXX) $(CPPFLAGS) $(VQL_CXXFLAGS) -Wno-shadow $(EXTRA) $(DEPFLAGS) -c $< -o $@

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@echo "  CC    $<"
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(VQL_CFLAGS) $(DEPFLAGS) -c $< -o $@

$(BUILD)/%.bpf.o: %.bpf.c $(BUILD)/flags
	@echo "  BPF   $<"
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(BPF_CFLAGS) $(DEPFLAGS) -c $< -o $@

$(BUILD)/man/%: userspace/man/%.scd
	@echo "  MAN   $*"
	@mkdir -p $(@D)
	$(Q)scdoc <$< >$@

# They read arguments from registers: the module and the maps are x86-64's.
$(BUILD)/bpf/trace.bpf.o $(BUILD)/bpf/events.bpf.o: private BPF_CFLAGS += -D__TARGET_ARCH_x86

# The daemon carries its maps' definitions and its programs inside, the command its own.
$(BUILD)/obj/userspace/ebpf/%.o $(BUILD)/folder/ebpf.o: EXTRA = -DVQL_BPF_DIR='"$(BUILD)/bpf"'
$(BUILD)/folder/ebpf.o: $(BPF_OBJ)
$(BUILD)/obj/userspace/ebpf/trace.o: $(BUILD)/bpf/events.bpf.o
$(BUILD)/obj/userspace/ebpf/maps.o: $(BUILD)/bpf/maps.bpf.o
$(BUILD)/obj/userspace/ebpf/remap.o: $(BUILD)/bpf/remap.bpf.o
$(BUILD)/obj/userspace/ebpf/kernel_stats.o: $(BUILD)/bpf/stats.bpf.o
$(call obj,$(wildcard tests/bpf/*.cc)): EXTRA = -DVQL_TEST_BPF_DIR='"$(BUILD)/tests/bpf"'
$(call obj,$(wildcard tests/bpf/*.cc)): $(BPF_OBJ)
# The version is compiled into one file, and that again when there is another.
$(BUILD)/version: FORCE
	$(Q)mkdir -p $(BUILD)
	$(Q)echo '$(VERSION)' | cmp -s - $@ || echo '$(VERSION)' > $@
$(BUILD)/obj/userspace/base/version.o: $(BUILD)/version
$(BUILD)/obj/userspace/base/version.o: private EXTRA = -DVQL_VERSION='"$(VERSION)"'
# The fuzz targets' corpora are replayed by the unit tests.
$(call obj,$(wildcard tests/unit/*.cc)): EXTRA = -DVQL_SOURCE_DIR='"$(TOP)"'

define link
	@echo "  LINK  $(@F)"
	@mkdir -p $(@D)
	$(Q)$(CXX) $(VQL_CXXFLAGS) $(LDFLAGS) $^ -o $@ $(1)
endef

$(BUILD)/vqlaned: $(call objects,userspace/daemon/main.cc $(DAEMON_SRC) $(BASE_SRC))
	$(call link,$(DAEMON_LIBS))
$(BUILD)/vqlane: $(call objects,userspace/cli/main.cc $(CLI_SRC) $(BASE_SRC))
	$(call link,-lbpf)
$(BUILD)/tests/unit_test: $(call obj,$(UNIT_SRC) $(UNIT_C)) $(call objects,$(DAEMON_SRC) $(CLI_SRC) $(BASE_SRC))
	$(call link,-lCatch2Main -lCatch2 $(DAEMON_LIBS))
$(BUILD)/tests/e2e_test: $(call obj,$(GUEST_SRC))
	$(call link,-lCatch2Main -lCatch2)

$(BUILD)/tests/poll_cost: $(call obj,tests/bench/poll_cost.cc $(DAEMON_SRC) $(BASE_SRC))
	$(call link,$(DAEMON_LIBS))

$(BUILD)/tests/bench: $(call obj,tests/bench/main.cc tests/bench/echo.cc $(LOAD_SRC))
	$(call link,)

# Programs that play a part in the VM: one C file each, on nothing but the kernel's interfaces.
$(BUILD)/tests/vm/%: $(BUILD)/obj/tests/vm/programs/%.o
	@echo "  LINK  $(@F)"
	@mkdir -p $(@D)
	$(Q)$(CC) $(VQL_CFLAGS) -pthread $< $(LDFLAGS) -o $@
$(BUILD)/obj/tests/vm/programs/%.o: private CPPFLAGS += -D_GNU_SOURCE

$(BUILD)/tests/vm/remap_load: LDFLAGS += -lbpf

# With the tests' virtio-blk driver: what tests/bench/vm runs there.
$(BUILD)/tests/vm/reader: $(call obj,tests/bench/vm/reader.cc $(patsubst %,tests/guest/%.cc,guest_memory posix \
		virtqueue_driver blk_driver vhost_user_client vhost_user_transport vhost_vdpa_client vhost_vdpa_transport))
	$(call link,-luring)

$(POLICIES): $(BUILD)/tests/vm/policies/%.bpf.o: tests/vm/policies.bpf.c $(BUILD)/flags
	@echo "  BPF   $< ($*)"
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(BPF_CFLAGS) -DPOLICY_$* $(DEPFLAGS) -c $< -o $@

$(BUILD)/tests/vm/bootsector: tests/vm/bootsector.S
	@echo "  AS    $<"
	@mkdir -p $(@D)
	$(Q)$(CC) -m32 -c $< -o $@.o
	$(Q)$(LD) -m elf_i386 -Ttext=0x7c00 --oformat=binary $@.o -o $@

-include $(shell find $(BUILD)/obj $(BUILD)/folder $(BUILD)/bpf $(BUILD)/tests -name '*.d' 2>/dev/null)

# How each file is compiled, for clangd and the like, which look for it in build/.
SOURCES = $(sort $(wildcard userspace/*/*.cc tests/*/*.cc tests/bench/vm/*.cc))
COMPILE = $(CXX) $(CPPFLAGS) $(VQL_CXXFLAGS) -DVQL_BPF_DIR="" -DVQL_TEST_BPF_DIR="" -DVQL_SOURCE_DIR="" -c
$(BUILD)/compile_commands.json: $(BUILD)/flags $(SOURCES)
	$(Q)python3 -c 'import json, sys; print(json.dumps([{"directory": sys.argv[1], "file": f, \
		"arguments": sys.argv[2].split() + [f]} for f in sys.argv[3:]], indent=1))' '$(TOP)' '$(COMPILE)' $(SOURCES) >$@

setup:
	$(Q)scripts/setup

# A second make, since what setup installs is needed to read the rest of this one. On all CPUs,
# unless a -j was given.
BUILD_ALL = +case "$$MAKEFLAGS" in *-j*) j= ;; *) j=-j$$(nproc) ;; esac; $(MAKE) --no-print-directory $$j

demo: setup
	$(Q)$(BUILD_ALL) all
	$(Q)scripts/demo

test: setup
	$(Q)$(BUILD_ALL) all tests $(if $(SAN),,$(BENCH_PROGRAMS))
	$(Q)scripts/test

# While at work: what changed is compiled, and no package is looked for. T chooses tests, as Catch2 reads it.
unit e2e:
	$(Q)$(BUILD_ALL) $(if $(filter e2e,$@),all) $(BUILD)/tests/$@_test
	$(Q)$(BUILD)/tests/$@_test $(if $(T),'$(T)')

# The unit tests but for those of threads, which take as long as they are given; and the rules that take no time.
quick: T = ~[threads]
quick: unit
	$(Q)scripts/check --quick

# The kernel that the module is for, as scripts/kernel knows it.
KERNEL ?= host
KMOD := $(TOP)/build/kmod$(filter-out -host,-$(KERNEL))

# In a recipe: the folder to build modules with, or the end, with scripts/kernel's reason.
set_kdir = k="$(KDIR)"; [ -n "$$k" ] || { k=$$(scripts/kernel $(KERNEL)) || exit; k=$$k/headers; }

kmod: setup
	$(Q)$(set_kdir); $(MAKE) $(if $(V),V=$(V),-s) -C kmod OUT=$(KMOD) KDIR="$$k" VQL_VERSION='$(VERSION)' W=1

# A second module, that tests/vm needs: it must not depend on the first.
$(KMOD)/faults/faults.ko: tests/vm/faults/faults.c tests/vm/faults/Kbuild
	$(Q)mkdir -p $(@D) && cp $^ $(@D)/
	$(Q)$(set_kdir); $(MAKE) $(if $(V),V=$(V),-s) -C "$$k" M=$(@D) modules

vm-build: kmod
	$(Q)$(BUILD_ALL) all tests vm-programs $(KMOD)/faults/faults.ko

vm-test: vm-build
	$(Q)tests/vm/host-test --kernel $(KERNEL) $(CASE)

# Each part ends after TORTURE_SECONDS at the latest, and its last line counts. VQL_SEED repeats its choices.
# TORTURE="vhost-user vm" chooses parts.
TORTURE ?= vhost-user vm
TORTURE_KILLS ?= 10000
TORTURE_VM_KILLS ?= 500
TORTURE_SECONDS ?= 21600
torture: $(if $(filter vm,$(TORTURE)),kmod,setup)
	$(Q)$(BUILD_ALL) all tests $(if $(filter vm,$(TORTURE)),vm-programs $(KMOD)/faults/faults.ko)
	$(if $(filter vhost-user,$(TORTURE)),$(Q)TORTURE_KILLS=$(TORTURE_KILLS) TORTURE_SECONDS=$(TORTURE_SECONDS) \
		$(BUILD)/tests/e2e_test '[.torture]')
	$(if $(filter vm,$(TORTURE)),$(Q)TORTURE_KILLS=$(TORTURE_VM_KILLS) TORTURE_SECONDS=$(TORTURE_SECONDS) \
		tests/vm/host-test --kernel $(KERNEL) torture)

demo-host: kmod
	$(Q)$(BUILD_ALL) all $(BUILD)/tests/vm/tsc_khz
	$(Q)scripts/demo-host

BENCH ?=
BENCH_SECONDS ?= 0.5
BENCH_ROUNDS ?= 5
bench: setup $(if $(filter vm,$(BENCH)),kmod)
	$(Q)$(BUILD_ALL) all $(BENCH_PROGRAMS) $(if $(filter vm,$(BENCH)),vm-programs)
	$(Q)tests/bench/run --seconds $(BENCH_SECONDS) --rounds $(BENCH_ROUNDS) $(BENCH)

check: setup
	$(Q)$(BUILD_ALL) all $(BUILD)/tests/poll_cost
	$(Q)scripts/check

fuzz: setup
	$(Q)$(BUILD_ALL) $(FUZZ:%=$(TOP)/build/fuzz/%_fuzz)
	$(Q)set -e; for t in $(FUZZ); do \
		echo "fuzzing $$t for $(FUZZ_SECONDS) s"; mkdir -p build/fuzz/corpus/$$t; \
		build/fuzz/$${t}_fuzz -max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1 \
			-artifact_prefix=build/fuzz/$$t- build/fuzz/corpus/$$t tests/fuzz/corpus/$$t; done

FUZZ_FLAGS := -std=c++20 $(WARN) -O1 -g -DVQL_FUZZER -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
$(TOP)/build/fuzz/ring_fuzz: tests/fuzz/ring_fuzz.cc $(wildcard include/vqlane/*.h tests/fuzz/*.h tests/unit/*.h)
$(TOP)/build/fuzz/vhost_user_fuzz: tests/fuzz/vhost_user_fuzz.cc $(wildcard userspace/frontend/* userspace/base/* tests/fuzz/*.h)
$(TOP)/build/fuzz/vhost_user_fuzz: FUZZ_MORE = $(wildcard userspace/frontend/*.cc) $(BASE_SRC)
$(TOP)/build/fuzz/%_fuzz:
	@echo "  FUZZ  $*"
	@mkdir -p $(@D)
	$(Q)$(CLANG)++ $(CPPFLAGS) $(FUZZ_FLAGS) tests/fuzz/$*_fuzz.cc $(FUZZ_MORE) -o $@

# All folders that the man pages name, and a configuration that starts. What an operator has changed stays.
BPFDIR := $(DESTDIR)$(PREFIX)/lib/vqlane/bpf
DOCDIR := $(DESTDIR)$(PREFIX)/share/doc/vqlane
MANDIR := $(DESTDIR)$(PREFIX)/share/man
# Where each page goes: man8/vqlaned.8.
MAN_TO = $(foreach page,$(notdir $(MAN)),$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(page))
install: all
	install -D -m 755 $(BUILD)/vqlaned $(DESTDIR)$(PREFIX)/sbin/vqlaned
	install -D -m 755 $(BUILD)/vqlane $(DESTDIR)$(PREFIX)/bin/vqlane
	install -D -m 644 scripts/vqlaned.service $(DESTDIR)$(PREFIX)/lib/systemd/system/vqlaned.service
	install -D -m 644 $(BUILD)/bpf/trace.bpf.o $(BPFDIR)/trace.bpf.o
	install -d -m 755 $(DESTDIR)/etc/vqlane/conf.d
	install -d -m 700 $(DESTDIR)/var/lib/vqlane
	install -D -m 644 scripts/vqlaned.toml $(DOCDIR)/vqlaned.toml
	for page in $(MAN_TO); do install -D -m 644 $(BUILD)/man/$${page##*/} $$page || exit; done
	test -e $(DESTDIR)/etc/vqlane/vqlaned.toml || \
		echo '# All keys, with an example: $(PREFIX)/share/doc/vqlane/vqlaned.toml' >$(DESTDIR)/etc/vqlane/vqlaned.toml

# Programs go; the configuration, the state and what disks hold stay.
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/vqlaned $(DESTDIR)$(PREFIX)/bin/vqlane
	rm -f $(DESTDIR)$(PREFIX)/lib/systemd/system/vqlaned.service $(BPFDIR)/trace.bpf.o
	rm -f $(DOCDIR)/vqlaned.toml $(MAN_TO)
	rmdir --ignore-fail-on-non-empty -p $(BPFDIR) $(DOCDIR) 2>/dev/null || :
	@[ -n "$(DESTDIR)" ] || ! systemctl is-active --quiet vqlaned 2>/dev/null || \
		echo "vqlaned still runs, and its guests with it: systemctl stop vqlaned"
	@echo "left: $(DESTDIR)/etc/vqlane and $(DESTDIR)/var/lib/vqlane (configuration, state, disk images); remove them by hand"

# The module's sources, for dkms to build on the machine's own kernel.
KMOD_SRC = $(DESTDIR)/usr/src/vqlane-1
install-kmod:
	install -d $(KMOD_SRC)/kmod $(KMOD_SRC)/include/vqlane $(KMOD_SRC)/include/uapi/linux
	install -m 644 kmod/dkms.conf $(KMOD_SRC)/
	install -m 644 kmod/Kbuild kmod/Makefile $(KMOD_SRC)/kmod/
	for f in kmod/*/*.[ch]; do install -D -m 644 $$f $(KMOD_SRC)/$$f || exit; done
	echo '$(VERSION)' >$(KMOD_SRC)/kmod/version
	install -m 644 include/vqlane/*.h $(KMOD_SRC)/include/vqlane/
	install -m 644 include/uapi/linux/vqlane.h $(KMOD_SRC)/include/uapi/linux/

uninstall-kmod:
	rm -rf $(KMOD_SRC)

clean:
	rm -rf build
