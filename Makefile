# The one way in: every verb that CI runs and the README names is here. `make help` lists them.
#
# Variables: MACHINE (name or file for `make run`), ARGS (appended to the command of run and test-*),
# SEQUENCES, SEED and BED (of `make differential`), CASE (suites or cases that test-nested runs; all without it), SECONDS (of each fuzz target),
# CARGO_TARGET_DIR (default ./target), GUEST_TOOLCHAIN (rustup|source, see scripts/setup.sh).

SHELL := /bin/bash
comma := ,
.DEFAULT_GOAL := help

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
MEMVISOR := $(TARGET)/release/memvisor
GUEST := $(TARGET)/images/memvisor-guest.elf
MACHINE ?= default
ARGS ?=
CASE ?=
SEQUENCES ?= 1000
SEED ?= 1
BED ?= qemu
# bash counts in a variable of this name: it must not come from the environment.
SECONDS = 60

# Without libraries to load and to bind memvisor starts a third faster; where libc has no archive it is linked as
# usual. The start-up code of glibc 2.36 and later reads packed relocations, a third of a MiB less.
PACKED := $(if $(shell printf '%s\n' 2.36 "$$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)" | sort -VC && echo yes),-C link-arg=-Wl$(comma)-z$(comma)pack-relative-relocs)
STATIC := $(if $(filter /%,$(shell $(CC) -print-file-name=libc.a)),-C target-feature=+crt-static $(PACKED))

# Read by vmm's build script, which embeds the image.
export MEMVISOR_GUEST := $(GUEST)

.PHONY: help setup guest build initrds run test test-host test-kvm test-qemu test-nested test-nested-long differential fuzz mutants bench bench-guest bench-pressure lint ci clean

help: ## list these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what building and testing need; quick when all is there
	@scripts/setup.sh all

guest: ## build the guest kernel with its ring-3 program
	@scripts/setup.sh build
	@scripts/guest.sh build

build: guest ## build memvisor, the guest inside: target/release/memvisor
	cargo rustc --release -p memvisor --bin memvisor -- $(STATIC)

initrds: ## make what suites and `run --initrd` boot with: images/busybox.cpio, images/programs.cpio, images/differential.cpio
	@tests/programs/image.sh
	@tests/differential/image.sh

run: build ## launch MACHINE (default: default) and audit it from outside
	$(MEMVISOR) run $(MACHINE) $(ARGS)

test: ## everything that CI tests, on every bed that this machine has
	@LENGTH=short scripts/test.sh host kvm qemu nested

test-host: ## unit, property and documentation tests
	@scripts/test.sh host

test-kvm: ## suites on this machine's /dev/kvm
	@scripts/test.sh kvm

test-qemu: ## suites under QEMU's software CPU, 4 and 5 paging levels
	@scripts/test.sh qemu

test-nested: ## suites in a stock Linux with KVM on nested paging, in QEMU's software CPU; CASE=name for one
	@LENGTH=normal CASE="$(CASE)" scripts/test.sh nested

test-nested-long: ## the same and every case of a stock Linux as guest, its dump opened by crash and drgn
	@LENGTH=long CASE="$(CASE)" scripts/test.sh nested

differential: guest ## the same calls on this machine's Linux and in the guest: SEQUENCES from SEED on BED (qemu or kvm)
	@tests/programs/build.sh $(TARGET)/programs differential
	@$(if $(filter kvm,$(BED)),$(MAKE) --no-print-directory build)
	@cargo run --release -q -p memvisor-differential -- run --bed $(BED) --sequences $(SEQUENCES) --seed $(SEED) \
	    --program $(TARGET)/programs/differential-static --kernel $(GUEST) --memvisor $(MEMVISOR) $(ARGS)

fuzz: ## look for inputs that break a promise: SECONDS for each target, needs nightly
	@scripts/fuzz.sh $(SECONDS)

mutants: ## break the allocators on purpose and list what no test notices; FILES="..." for some files
	@scripts/mutants.sh $(FILES)

bench: build ## measure against peers, all or the ones in ARGS: start resident translate dump boot pages slab vmas guest
	cargo run --release --manifest-path bench/Cargo.toml --target-dir $(TARGET)/bench -- --memvisor $(MEMVISOR) --guest $(GUEST) $(ARGS)

bench-guest: guest ## system calls and faults against a stock Linux, both under QEMU; ARGS="--cpus 1,4 --rounds 3 null fork1"
	@scripts/nested/fetch.sh
	cargo run --release --manifest-path bench/Cargo.toml --target-dir $(TARGET)/bench -- loops --guest $(GUEST) --linux $(TARGET)/nested/l1/vmlinux $(ARGS)

bench-pressure: guest ## programs that want more memory than there is, against a stock Linux; ARGS="--mib 256 --rounds 3 touch-seq-1.3 oom"; --policies: our own LRU lists and slabs
	@scripts/nested/fetch.sh
	cargo run --release --manifest-path bench/Cargo.toml --target-dir $(TARGET)/bench -- pressure --guest $(GUEST) --linux $(TARGET)/nested/l1/vmlinux --modules $(TARGET)/nested/l1/disk $(ARGS)

lint: guest ## formatting and clippy of all crates; warnings are errors
	@scripts/lint.sh

ci: ## what CI runs: lint and test, all failures listed at the end
	@.ci/run

clean: ## remove everything that was built
	cargo clean
	rm -rf $(TARGET)/guest $(TARGET)/images $(TARGET)/test $(TARGET)/guest-toolchain.env
