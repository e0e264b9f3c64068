# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# Sourced by what boots a VM, here and in scripts/demo: messages, the choice of accelerator, QEMU's
# common arguments, and the daemon's start and stop.

vm_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$vm_dir/../.." && pwd)
: "${VQL_BUILD:=$top/build}"
# How many times as slow as it should be the machine is taken for: what waits, waits as many times as long.
: "${VQL_SLOWER:=1}"
# A guest's CPUs.
readonly vm_cpus=${VQL_GUEST_CPUS:-2}

say() { printf '%s: [%3d s] %s\n' "${0##*/}" "$SECONDS" "$*"; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }
skip() { printf '%s: skipped: %s\n' "${0##*/}" "$*"; exit 77; }

# within SECONDS COMMAND…
within() { timeout -k 5 $(($1 * VQL_SLOWER)) "${@:2}"; }

# vm_missing: prints what a VM test needs and this machine lacks; nothing when all is there.
vm_missing() {
    local tool
    PATH=$PATH:/usr/sbin:/sbin
    [[ $(uname -m) == x86_64 ]] || echo "an x86-64 machine"
    for tool in qemu-system-x86_64 busybox cpio depmod e2fsck mkfs.ext4 debugfs python3; do
        command -v "$tool" >/dev/null || echo "$tool"
    done
}

# vm_need_programs: dies unless the programs to test are built.
vm_need_programs() {
    local program
    for program in vqlaned vqlane; do
        [[ -x $VQL_BUILD/$program ]] || die "no $VQL_BUILD/$program: run make"
    done
}

# vm_guest_initrd KERNEL-FOLDER OUT
vm_guest_initrd() {
    "$vm_dir/initrd" "$1" "$vm_dir/guest-init" "$2" mkfs.ext4 e2fsck blkdiscard fstrim
}

# vm_accel KERNEL-FOLDER INITRD OUT: sets vm_accel_name. VQL_ACCEL=kvm|tcg chooses; otherwise KVM,
# where a guest really boots with it: /dev/kvm alone says little (no permission, no working nested
# virtualization). The answer is kept until the machine boots again, for finding out that KVM hangs
# takes the whole 10 s.
vm_accel() {
    local known=${VQL_CACHE:-$top/build/cache}/accel boot
    boot=$(</proc/sys/kernel/random/boot_id)
    vm_accel_name=${VQL_ACCEL:-}
    case $vm_accel_name in
    kvm | tcg) return 0 ;;
    '') ;;
    *) die "VQL_ACCEL is '$VQL_ACCEL', want kvm or tcg" ;;
    esac
    if [[ ! -r /dev/kvm || ! -w /dev/kvm ]]; then
        vm_accel_name=tcg
    elif [[ -r $known && $(<"$known") == "$boot "* ]]; then
        vm_accel_name=$(cut -d' ' -f2 "$known")
    else
        say "probing whether a guest boots with KVM (at most 10 s)"
        vm_accel_name=kvm
        vm_start boot "$1" "$2" "$3/probe" 10
        # Where KVM does not work QEMU may abort, which is an answer and not for the user.
        { wait "$vm_pid"; } 2>/dev/null && grep -q '^verdict pass ' "$3/probe/result" || vm_accel_name=tcg
        printf '%s %s\n' "$boot" "$vm_accel_name" >"$known"
    fi
}

# vm_accel_arguments: sets vm_accel_args to what vm_accel_name is in QEMU's words, and vm_accel_append to
# what a kernel had better be told about it.
vm_accel_arguments() {
    vm_accel_args=(-accel kvm -cpu host)
    vm_accel_append=
    [[ $vm_accel_name != kvm ]] || return 0
    # TCG executes "rep movsb" byte by byte: a kernel that is told it is fast takes five times as long to
    # start a program.
    vm_accel_args=(-accel 'tcg,thread=multi' -cpu 'max,-erms,-fsrm')
    vm_accel_append='no5lvl no_timer_check'
    # The time stamp counter is this machine's. Measured by the guest, on a busy machine, it may come out
    # several times as fast, and so does the guest's clock.
    if [[ -z ${VQL_TSC_KHZ:-} && -x $VQL_BUILD/tests/vm/tsc_khz ]]; then
        VQL_TSC_KHZ=$("$VQL_BUILD/tests/vm/tsc_khz")
        export VQL_TSC_KHZ
    fi
    [[ -z ${VQL_TSC_KHZ:-} ]] || vm_accel_append+=" tsc=reliable tsc_early_khz=$VQL_TSC_KHZ"
}

# vm_mark TEXT: in the host VM, a line in its kernel's log: host-test reads there, when that kernel has died, what it
# was doing.
vm_mark() { [[ -z ${VQL_MARKS:-} ]] || printf 'vqlane-vm: %s\n' "$*" >"$VQL_MARKS"; }

# vm_start JOB KERNEL-FOLDER INITRD OUT SECONDS [QEMU-ARGUMENT|vql.KEY=VALUE]...
# Starts a guest that lives SECONDS at most and sets vm_pid, of which wait gives QEMU's exit status, or
# 124 when time was up. OUT gets result (what the job said), console (what its kernel said), qemu.log.
vm_start() {
    local kernel=$2 initrd=$3 out=$4 seconds=$5 argument
    local append="console=ttyS0 loglevel=6 panic=-1 oops=panic mitigations=off vql.job=$1"
    local -a extra=()
    vm_accel_arguments
    append+=" $vm_accel_append"
    shift 5
    for argument in "$@"; do
        if [[ $argument == vql.*=* ]]; then
            append+=" $argument"
        else
            extra+=("$argument")
        fi
    done
    mkdir -p "$out"
    truncate -s 0 "$out/result" "$out/console"
    timeout --kill-after=5 "$seconds" qemu-system-x86_64 \
        -nodefaults -no-user-config -no-reboot -display none -monitor none \
        "${vm_accel_args[@]}" -smp "$vm_cpus" -m 512M -M q35,memory-backend=ram \
        -object memory-backend-memfd,id=ram,size=512M,share=on \
        -chardev "file,id=console,path=$out/console" -serial chardev:console \
        -chardev "file,id=result,path=$out/result" -serial chardev:result \
        -kernel "$kernel/vmlinuz" -initrd "$initrd" -append "$append" \
        "${extra[@]}" </dev/null >"$out/qemu.log" 2>&1 &
    vm_pid=$!
}

# run_guest ARGUMENT...: run-guest, while the daemon lives and has nothing to complain of (a client that
# is dropped comes back for ever: no need to wait for the guest's time to be up). The caller's exit takes
# the guest with it.
run_guest() {
    "$vm_dir/run-guest" "$@" &
    guest_pid=$!
    while kill -0 "$guest_pid" 2>/dev/null; do
        kill -0 "$daemon_pid" 2>/dev/null ||
            die "vqlaned ended while a guest used it; its last words: $(tail -n 20 "$daemon_log")"
        daemon_content
        sleep 0.3
    done
    wait "$guest_pid" || exit
    guest_pid=
}

# daemon_content: dies if the daemon has complained of a disk or a poller.
daemon_content() {
    local complaint
    complaint=$(grep -m 1 -E '^(error|warning): (disk|poller)' "$daemon_log") || return 0
    die "vqlaned complained: $complaint"
}

# daemon_dirs BPF-DIR: sets run_dir to a new folder (its path short, for a Unix socket's has 107 bytes)
# and bpf_dir to a folder that is this run's alone, and sees to it that at exit guest, daemon, sockets and
# pins are gone.
daemon_dirs() {
    run_dir=$(mktemp -d /tmp/vqlane.XXXXXX)
    bpf_dir=$1
    trap daemon_cleanup EXIT
}

daemon_cleanup() {
    [[ -z ${guest_pid:-} ]] || kill "$guest_pid" 2>/dev/null || true
    daemon_stop || true
    rm -rf "$run_dir"
    # A daemon that was killed leaves its pins.
    [[ ! -d $bpf_dir ]] || rm -rf "$bpf_dir"
}

# disk_config IMAGE: prints a configuration with one disk, vm1, on the file IMAGE.
disk_config() {
    cat <<END
[daemon]
run_dir = "$run_dir"
bpf_dir = "$bpf_dir"

[[target]]
name = "file0"
type = "uring"
path = "$1"

[[disk]]
name = "vm1"
target = "file0"
queues = 2
END
}

# daemon_start CONFIG LOG: starts vqlaned, by daemon_runner if that is set, and waits until it says that it is ready. Sets
# daemon_pid.
daemon_start() {
    local tries
    daemon_log=$2
    # The last run's log says "ready" too, until the child has opened its own.
    : >"$daemon_log"
    # Each begins without what commands did before.
    rm -rf "$run_dir/state"
    ${daemon_runner[@]+"${daemon_runner[@]}"} "$VQL_BUILD/vqlaned" --config "$1" \
        --state-dir "$run_dir/state" >"$daemon_log" 2>&1 </dev/null &
    daemon_pid=$!
    for ((tries = 0; tries < 1400 * VQL_SLOWER; tries++)); do
        grep -q '^info: ready: ' "$daemon_log" && return 0
        kill -0 "$daemon_pid" 2>/dev/null || break
        sleep 0.05
    done
    cat "$daemon_log" >&2
    die "vqlaned did not become ready (its log is above)"
}

# daemon_stop: SIGTERM, and SIGKILL when it has not gone after 10 s (VQL_SLOWER times that). Returns the daemon's exit status.
daemon_stop() {
    local tries
    [[ -n ${daemon_pid:-} ]] || return 0
    kill -TERM "$daemon_pid" 2>/dev/null || true
    for ((tries = 0; tries < 100 * VQL_SLOWER; tries++)); do
        kill -0 "$daemon_pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$daemon_pid" 2>/dev/null || true
    set -- "$daemon_pid"
    daemon_pid=
    wait "$1"
}

# disk_stats OUT SECONDS: has check-stats judge vm1's figures and print them, as the control socket tells
# them (kept in OUT/stats.json) and, where the daemon has pinned its maps, as bpftool reads them
# (OUT/map.json).
disk_stats() {
    local -a map=()
    within 10 "$VQL_BUILD/vqlane" --socket "$run_dir/control.sock" --json stats vm1 >"$1/stats.json"
    if [[ -e $bpf_dir/vm1/stats ]]; then
        map=("$1/map.json")
        PATH=$PATH:/usr/sbin within 10 bpftool -j map dump pinned "$bpf_dir/vm1/stats" >"${map[0]}"
    fi
    "$vm_dir/check-stats" "$1/stats.json" "$2" "${map[@]}"
}

# daemon_end: stops the daemon and dies unless it ended well, with nothing to complain of and its pins
# removed.
daemon_end() {
    local status=0
    daemon_stop || status=$?
    ((status == 0)) || die "vqlaned's exit status after SIGTERM is $status: $(tail -n 20 "$daemon_log")"
    daemon_content
    [[ ! -e $bpf_dir ]] || die "vqlaned left $bpf_dir behind"
}
