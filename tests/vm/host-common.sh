# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# Sourced by the cases, in the host VM: checks, drives, the module, the daemon, guests. From the harness:
#
#   VQL_TOP, VQL_BUILD   the repository and its build folder
#   VQL_KMOD             the module to load
#   VQL_OUT              this case's folder, to write to; it is kept, and the case starts in it
#
# A case is a bash script under set -e: a command that fails ends it, and fails it; so does no check at all.
set -eEuo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
export VQL_GUEST_CPUS=${VQL_GUEST_CPUS:-1} VQL_MARKS=/dev/kmsg
. "$VQL_TOP/tests/vm/common.sh"
PATH=$VQL_BUILD:$VQL_BUILD/tests/vm:$PATH

vql_checks=0
vql_failures=0
vql_at_exit=()

# record KIND TEXT: a line for the runner (host-agent says which) and for the log. Not on stdout, which
# may be being read.
record() {
    printf '%s\n' "$*" >&2
    printf '%s\n' "$*" >&3
}
step() { record step "$@"; }
note() { record note "$@"; }
skip() { record note "skipped: $*"; exit 77; }
die() { record fail "$*"; vql_failures=$((vql_failures + 1)); exit 1; }

# check WHAT COMMAND…: the command's status is the result; the case goes on either way. In a function
# that is called this way set -e has no effect: join its commands by &&.
check() {
    local what=$1 status=0
    shift
    vql_checks=$((vql_checks + 1))
    "$@" >"$VQL_OUT/check.log" 2>&1 || status=$?
    cat "$VQL_OUT/check.log"
    if ((status == 0)); then
        record ok "$what"
    else
        vql_failures=$((vql_failures + 1))
        record fail "$what: status $status: $(tail -n 3 "$VQL_OUT/check.log" | tr '\n' ' ')"
    fi
    return 0
}

# report PROGRAM…: a program that says "ok WHAT" and "not ok WHAT: WHY", a line each; each is a check. The
# program's own status must agree. What it leaves out, it tells by "skipped WHAT: WHY". By "do WORD" it asks
# for the case's function do_WORD, and may wait for the file did.WORD in $VQL_OUT that says it was called.
report() {
    local line status=0
    while read -r line; do
        case $line in
        'ok '*)
            vql_checks=$((vql_checks + 1))
            record "$line"
            ;;
        'not ok '*)
            vql_checks=$((vql_checks + 1))
            vql_failures=$((vql_failures + 1))
            record fail "${line#not ok }"
            ;;
        'skipped '*) record note "$line" ;;
        'do '*)
            check "${line#do }" "do_${line#do }"
            : >"$VQL_OUT/did.${line#do }"
            ;;
        'report-status '*) status=${line#* } ;;
        *) printf '%s\n' "$line" >&2 ;;
        esac
    done < <(
        "$@" 2>&1 || status=$?
        # A program that is killed may leave half a line.
        printf '\nreport-status %d\n' "$status"
    )
    check "${1##*/} ends well" is "$status" 0
}

is() { [[ $1 == "$2" ]] || { echo "is '$1', want '$2'"; return 1; }; }
at_least() { (($1 >= $2)) || { echo "is $1, want at least $2"; return 1; }; }
fails() { ! "$@" || { echo "'$*' should fail, and did not"; return 1; }; }

# unload_module: what a daemon's io_uring had open the kernel lets go of a while after the daemon is gone, on a busy machine
# a long one. What is kept for half a minute is kept for good.
unload_module() {
    local i
    for ((i = 0; i < 100; i++)); do
        ! rmmod vqlane 2>/dev/null || return 0
        sleep 0.3
    done
    # Who has it: disks, processes, programs.
    compgen -G '/sys/bus/vdpa/devices/vqlane-*'
    find /proc/[0-9]*/fd -lname '/dev/v*' -printf '%p: %l\n' 2>/dev/null
    bpftool link show 2>/dev/null | grep -A 3 struct_ops
    rmmod vqlane
}

# at_exit COMMAND…: at the case's end, however it ends, the last one first.
at_exit() { vql_at_exit=("$(printf '%q ' "$@")" "${vql_at_exit[@]}"); }

vql_end() {
    local status=$1 command
    trap - ERR
    set +e
    for command in "${vql_at_exit[@]}"; do
        eval "$command" || record fail "putting away: $command"
    done
    if ((status == 0 && vql_checks == 0)); then
        record fail "the case has checked nothing"
        status=1
    fi
    ((status != 0 || vql_failures == 0)) || status=1
    exit "$status"
}
trap 'record fail "$0, line $LINENO: status $?: $BASH_COMMAND"' ERR
trap 'vql_end $?' EXIT

# wait_for SECONDS COMMAND…: until it succeeds; false when time is up. As with all limits of a case, these are
# seconds of the usual kernel (VQL_SLOWER).
wait_for() {
    local until=$((SECONDS + $1 * VQL_SLOWER))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS <= until)) || { echo "not within the time: $*"; return 1; }
        sleep 0.1
    done
}

# ---- The monitor of the machine that this VM is ----

# monitor COMMAND…: a command of QEMU's human monitor; prints the answer.
monitor() {
    local line id answer= try
    # The serial port may have echoed QEMU's greeting, or a part of it, back to it before anybody could say
    # that it shall not: then the monitor waits for the end of that, but for the byte that is in no JSON.
    for try in 1 2 3; do
        id=$RANDOM$RANDOM
        exec 4<>/dev/ttyS2
        stty -F /dev/ttyS2 raw -echo
        printf '\377{"execute":"qmp_capabilities"}\n{"execute":"human-monitor-command","arguments":{"command-line":"%s"},"id":%s}\n' \
            "${*//\"/\\\"}" "$id" >&4
        while read -r -t $((20 * VQL_SLOWER)) -u 4 line; do
            [[ $line == *"\"id\": $id"* ]] || continue
            answer=$line
            break
        done
        exec 4>&-
        [[ $answer != *'"return": '* ]] || break
    done
    [[ $answer == *'"return": '* ]] || { echo "no answer from the monitor to '$*' in $try tries: '$answer'" >&2; return 1; }
    answer=${answer#*\"return\": \"}
    printf '%b' "${answer%%\", \"id\"*}"
}

# ---- NVMe drives (host-vm.sh) ----

# drive SERIAL [CNTLID]: the PCI address of its controller; of several, of the one with that ID, or with the lowest.
# Known also when the drive is not the kernel's (host-agent looked at boot).
drive() {
    awk -v serial="$1" -v id="${2:-}" '$1 == serial && (id == "" || $3 == id) { print $2; found = 1; exit }
        END { exit !found }' /run/vm/drives || { echo "no drive $1 ${2:-}" >&2; return 1; }
}

driver_of() {
    local link
    link=$(readlink "/sys/bus/pci/devices/$1/driver") || link=none
    printf '%s\n' "${link##*/}"
}

# node SERIAL: the block device of its namespace 1, with the kernel's driver.
node() {
    local device
    for device in /sys/block/nvme*n*; do
        # Paths to a namespace (nvme0c1n1) are there, too, but have no node. The kernel looks for namespaces
        # side by side: its number for one is not the drive's.
        [[ -b /dev/${device##*/} && $(tr -d ' ' <"$device/device/serial") == "$1" ]] || continue
        [[ $(<"$device/nsid") == 1 ]] || continue
        printf '/dev/%s\n' "${device##*/}"
        return
    done
    echo "the kernel has no namespace on drive $1" >&2
    return 1
}

# bind_driver BDF DRIVER: from whatever driver it has to this one, by name; nvme takes it by itself.
bind_driver() {
    local device=/sys/bus/pci/devices/$1
    [[ ! -e $device/driver ]] || echo "$1" >"$device/driver/unbind"
    if [[ $2 == nvme ]]; then
        echo >"$device/driver_override"
    else
        echo "$2" >"$device/driver_override"
    fi
    echo "$1" >/sys/bus/pci/drivers_probe
    is "$(driver_of "$1")" "$2"
}

# take_drive SERIAL [CNTLID]: gives it to vqlane until the case ends.
take_drive() {
    local bdf
    bdf=$(drive "$@")
    at_exit give_back "$bdf"
    bind_driver "$bdf" vqlane
}

# give_back BDF: to the kernel's driver, whose namespaces appear a moment later. A drive that was pulled is gone.
give_back() {
    [[ -e /sys/bus/pci/devices/$1 && $(driver_of "$1") != nvme ]] || return 0
    bind_driver "$1" nvme && wait_for 20 namespaces_of "$1"
}
namespaces_of() { compgen -G "/sys/bus/pci/devices/$1/nvme/nvme*/nvme*n*"; }

# pull_drive BDF: without a warning, by cutting the slot's power in Slot Control (PCIe 6.0 §7.5.3.10): power
# indicator and power controller off. On again at once, lest the hot-plug driver take the card for one that
# it has switched off itself; and its interrupt is off in between, since it may be faster than setpci. A case
# that does it has "alone" in its head.
pull_drive() {
    setpci -s "$(basename "$(readlink -f "/sys/bus/pci/devices/$1/..")")" CAP_EXP+18.w=0700:0720 CAP_EXP+18.w=0120:0720
}

# mute_drive BDF: it goes on living but can no longer read commands nor write answers (bus master off).
mute_drive() { setpci -s "$1" COMMAND=0:4; }
unmute_drive() { setpci -s "$1" COMMAND=4:4; }

# silence_drives: they do, and answer, what they are told, but the module sees none of their answers to admin commands. For
# no longer than a minute: then it resets them.
silence_drives() { insmod "${VQL_KMOD%/vqlane.ko}/faults/faults.ko" mute=1; }
end_silence() { rmmod faults; }

# slow_drive SERIAL IOPS: it does no more than so many commands a second; 0: as many as it can.
slow_drive() { monitor "block_set_io_throttle $1-image 0 0 0 $2 0 0"; }

# ---- Memory ----

# pinned_pages: how many are pinned for DMA just now, by anybody. Each CPU counts for itself, and is to tell.
pinned_pages() {
    echo 1 >/proc/sys/vm/stat_refresh
    awk '$1 == "nr_foll_pin_acquired" { n += $2 } $1 == "nr_foll_pin_released" { n -= $2 } END { print n + 0 }' /proc/vmstat
}

# free_mib: free memory without caches.
free_mib() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
    awk '$1 == "MemFree:" { print int($2 / 1024) }' /proc/meminfo
}

# ---- Module, daemon, disks ----

# load_module [PARAMETER=VALUE]…: until the case ends.
load_module() {
    modprobe vdpa
    # A guest's memory may be in as many pieces as it has pages; 2048 are the default, and then the VMM
    # hears no more than "Bad address".
    modprobe vhost_vdpa max_iotlb_entries=1048576
    at_exit unload_module
    insmod "$VQL_KMOD" "$@"
}

# vdpa_node DISK: its /dev/vhost-vdpa-N, waited for.
vdpa_node() {
    local found
    wait_for 10 compgen -G "/sys/bus/vdpa/devices/vqlane-$1/vhost-vdpa-*" >&2
    found=$(compgen -G "/sys/bus/vdpa/devices/vqlane-$1/vhost-vdpa-*")
    wait_for 10 test -c "/dev/${found##*/}" >&2
    printf '/dev/%s\n' "${found##*/}"
}

# nvme_config BDF [FRONTEND [LANE]]: prints a configuration with one disk, vm1, on the drive's first namespace,
# for a stock VMM over vDPA and in the poll lane, or over vhost-user. Behind an IOMMU that does not translate the daemon has to be
# told so.
nvme_config() {
    local untranslated=true
    [[ $(cat "/sys/bus/pci/devices/$1/iommu_group/type" 2>/dev/null) != DMA ]] || untranslated=false
    cat <<END
[daemon]
run_dir = "$run_dir"
bpf_dir = "$bpf_dir"
allow_untranslated_dma = $untranslated

[[disk]]
name = "vm1"
target = "nvme:$1/1"
frontend = "${2:-vdpa}"
queues = 2
END
    [[ ${2:-vdpa} != vdpa ]] || printf 'lane = "%s"\n' "${3:-poll}"
}

# count_hits EVENT: counts the module's tracepoint vqlane_EVENT from now on until the case ends. hits EVENT: so often was
# it hit. A histogram's line per key ends with its hits.
vqlane_events=/sys/kernel/tracing/events/vqlane
count_hits() {
    echo 'hist:keys=slot' >"$vqlane_events/vqlane_$1/trigger"
    at_exit eval "echo '!hist:keys=slot' >'$vqlane_events/vqlane_$1/trigger'"
}
hits() { awk '/hitcount:/ { sum += $NF } END { print sum + 0 }' "$vqlane_events/vqlane_$1/hist"; }

# count_stacks EVENT: the same by the calls that led there. stacks EVENT FUNCTION…: so often did they lead through these
# functions, named from the event outwards; other calls may be in between.
count_stacks() {
    echo 'hist:keys=common_stacktrace:size=1024' >"$vqlane_events/vqlane_$1/trigger"
    at_exit eval "echo '!hist:keys=common_stacktrace:size=1024' >'$vqlane_events/vqlane_$1/trigger'"
}
stacks() {
    awk -v functions="${*:2}" '
        BEGIN { n = split(functions, wanted) }
        /common_stacktrace:/ { next_one = 1 }
        next_one <= n && $1 ~ "^" wanted[next_one] "[.+]" { next_one++ }
        /hitcount:/ && next_one > n { sum += $NF }
        END { print sum + 0 }' "$vqlane_events/vqlane_$1/hist"
}

# asked EXPRESSION COMMAND…: of what vqlane answers in JSON. in_kernel: requests of all queues of the first disk
# in the kernel lane; polled: of all pollers.
asked() {
    local expression=$1
    shift
    vqlane --socket "$run_dir/control.sock" --json "$@" |
        python3 -c "import json, sys; answer = json.load(sys.stdin); print($expression)"
}
in_kernel() { asked 'sum(q["kernel_requests"] for q in answer[0]["lanes"])' disk list; }
polled() { asked 'sum(p["requests"] for p in answer["pollers"])' stats; }

# The daemon may do here what its unit lets it do, and no more.
unit_capabilities=$(sed -n 's/^CapabilityBoundingSet=//p' "$VQL_TOP/scripts/vqlaned.service")
# shellcheck disable=SC2034  # common.sh has it
daemon_runner=(setpriv --no-new-privs --bounding-set "-all$(printf ',+%s' ${unit_capabilities//CAP_/} | tr '[:upper:]' '[:lower:]')")

# case_daemon_dirs: daemon_dirs, for what daemon_start starts until the case ends.
case_daemon_dirs() {
    daemon_dirs "/sys/fs/bpf/vqlane-$$"
    trap 'vql_end $?' EXIT
    at_exit daemon_cleanup
}

# e2e_prepare vdpa|vhost-user [VICTIM…]: what the end-to-end tests need for guests of that kind with disks on
# drive vql-two, which the kernel shares (tests/guest/e2e.h). VICTIM: drives that the case will do something to,
# by serial. What tests leave for reads_back is in $VQL_OUT/left.
e2e_prepare() {
    local serial
    [[ -e /sys/module/vqlane ]] || load_module
    VQL_E2E=$1
    shift
    VQL_E2E_VICTIMS=
    for serial; do
        take_drive "$serial"
        VQL_E2E_VICTIMS+="$(drive "$serial") "
    done
    modprobe loop
    take_drive vql-two
    VQL_E2E_BDF=$(drive vql-two)
    VQL_E2E_NVME=$(node vql-two)
    VQL_E2E_LEAVE=$VQL_OUT/left
    VQL_TEST_SCALE=${VQL_TEST_SCALE:-0.1}
    export VQL_OUT VQL_E2E VQL_E2E_VICTIMS VQL_E2E_BDF VQL_E2E_NVME VQL_E2E_LEAVE VQL_TEST_SCALE
    mkdir -p "$VQL_E2E_LEAVE"
}

# e2e VICTIMS FILTER…: prepares for vDPA guests, and runs those of the end-to-end tests.
e2e() {
    local pinned
    pinned=$(pinned_pages)
    VQL_TEST_SCALE=${VQL_TEST_SCALE:-1}
    # shellcheck disable=SC2086 # words are what is wanted
    e2e_prepare vdpa $1
    shift
    report "$VQL_TOP/tests/vm/catch-report" "$VQL_BUILD/tests/e2e_test" "$@"
    check "no page stays pinned" is "$(pinned_pages)" "$pinned"
    check "no disk stays in the module" fails compgen -G '/sys/bus/vdpa/devices/vqlane-*'
}

# reads_back: the kernel's driver, which has drive vql-two back, reads what the tests left. The files are named
# after where they were on the drive.
reads_back() {
    local left
    for left in "$VQL_OUT"/left/*; do
        dd if="$(node vql-two)" iflag=direct,skip_bytes,count_bytes skip="${left##*/}" count="$(stat -c %s "$left")" \
            bs=64k status=none | cmp - "$left" || return 1
        rm "$left"
    done
}

# ---- Guests ----
#
# With KVM, where the VM's CPU has SVM or VMX: the one that QEMU emulates has. A kick is then the exit of a vCPU, and an
# interrupt comes by irqfd, as on any host. One CPU each, unless a case sets VQL_GUEST_CPUS before it sources this: with
# two the emulation of SVM fails more often (host_died_of_svm).

# guest_accel: before run-guest: sets VQL_ACCEL to what guests run with from here on: kvm, or tcg, with the reason. Where
# the VM itself is emulated, loading KVM takes seconds: only a case that boots a guest does it.
guest_accel() {
    local why='' module=kvm_amd
    [[ -z ${VQL_ACCEL:-} ]] || return 0
    export VQL_ACCEL=tcg
    if [[ $VQL_GUESTS == tcg ]]; then
        why=", as this machine was told"
    elif ! grep -qwE 'svm|vmx' /proc/cpuinfo; then
        why=": the CPU has neither SVM nor VMX"
    else
        ! grep -qw vmx /proc/cpuinfo || module=kvm_intel
        if modprobe $module && [[ -c /dev/kvm ]]; then
            VQL_ACCEL=kvm
        else
            why=": $module does not load: $(dmesg | grep -i kvm | tail -n 1)"
        fi
    fi
    note "guests run with $VQL_ACCEL$why"
}

# mounts_here DEVICE: the kernel's own file system and driver find every file as job blk's guest wrote it.
mounts_here() {
    mkdir -p /tmp/mount
    mount -o ro,noload "$1" /tmp/mount || return
    (cd /tmp/mount/data && sha256sum --quiet -c ../MANIFEST)
    local status=$?
    umount /tmp/mount && return $status
}

# guest_left DEVICE RESULT: what job blk's guest, which said RESULT, has left on the drive that the kernel has back.
guest_left() {
    check "outside of the guest: fsck, files and raw blocks are what it wrote" "$vm_dir/check-image" "$1" "$2"
    check "and the kernel's ext4 on the kernel's nvme driver reads every file" mounts_here "$1"
}

# The boot-sector guest (bootsector.S) reads blocks 1… of its disk, changes them, and writes them further on. It runs with
# TCG: under KVM on the SVM that QEMU emulates, firmware and boot sector, which are in real mode, stand still, start anew,
# or take the machine's CPU with them, also on QEMU's own virtio-blk with no vqlane loaded (in 1 of 16 boots; 5 of 12 with
# a vDPA device). With TCG none of 6 did.
readonly boot_blocks=512

# boot_prepare DEVICE: puts the boot sector and the data that it is to change on the disk.
boot_prepare() {
    dd if="$VQL_BUILD/tests/vm/bootsector" of="$1" bs=512 conv=notrunc oflag=sync status=none
    dd if=/dev/urandom of="$VQL_OUT/boot.data" bs=512 count=$boot_blocks status=none
    dd if="$VQL_OUT/boot.data" of="$1" bs=512 seek=1 conv=notrunc,fsync status=none
}

# boot_guest SECONDS QEMU-ARGUMENT…: runs it from the one bootable disk of the arguments.
boot_guest() {
    local seconds=$1 status=0 said
    shift
    vm_mark "guest begins, tcg"
    within "$seconds" qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none \
        -accel tcg,thread=single -cpu qemu64 -m 64M -serial "file:$VQL_OUT/boot.said" "$@" </dev/null || status=$?
    vm_mark "guest ends"
    said=$(tr -d '\r\0' <"$VQL_OUT/boot.said")
    is "$status: $said" "0: done"
}

# boot_check DEVICE: what the guest wrote is what it read, changed.
boot_check() {
    dd if="$1" of="$VQL_OUT/boot.read" bs=512 skip=$((1 + boot_blocks * 2)) count=$boot_blocks iflag=direct status=none
    python3 - "$VQL_OUT/boot.data" "$VQL_OUT/boot.read" <<'END'
import sys
data, read = (open(name, "rb").read() for name in sys.argv[1:])
wrong = [i // 512 for i in range(0, len(data), 512) if bytes(b ^ 0x5A for b in data[i:i + 512]) != read[i:i + 512]]
sys.exit(f"{len(wrong)} blocks are wrong, the first is {wrong[0]}" if wrong or len(read) != len(data) else 0)
END
}
