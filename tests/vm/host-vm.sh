# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# Sourced by what boots the host VM, after common.sh: a machine with vqlane.ko's kernel, the root of this
# machine, and NVMe drives of its own.
#
#   serial    drive                                                id in the monitor
#   vql-512   1 GiB, blocks of 512 bytes, 8 queue pairs            vql-512
#   vql-4k    1 GiB, blocks of 4096 bytes; 8 interrupts only,      vql-4k
#             no shadow doorbells; namespace 2 has 64 MiB in
#             blocks of 512
#   vql-2q    256 MiB, 2 queue pairs; no shadow doorbells;         vql-2q
#             namespaces 2 to 4 have formats to be refused
#   vql-two   256 MiB, one namespace behind two controllers        vql-two-a, vql-two-b
#
# For cases that ask for it (drives: failing):
#
#   vql-bad   64 MiB; reading block 2048 fails, and so does        vql-bad
#             writing block 4096; all others work
#
# drives: odd
#
#   vql-odd   64 MiB; queues of 32 entries, and PCI identifiers    vql-odd
#             (8086:5845) of a drive with quirks
#
# Each controller is behind a hot-plug root port of its own, ID-port.

# What a healthy machine's kernel never says.
readonly host_complaints='Oops|BUG:|WARNING:|Call Trace|Kernel panic|general protection|KASAN|UBSAN|kmemleak: [1-9]|lockdep|blocked for more than|soft lockup|detected stall|rcu.*stall|refcount_t|DMAR:.*(fault|\[)|bad page|still has locks held|possible (circular|recursive)|inconsistent lock state'

# vm_controller ID SERIAL OPTIONS: a controller behind its own port.
vm_controller() {
    host_slot=$((host_slot + 1))
    host_drives+=(-device "pcie-root-port,id=$1-port,chassis=$host_slot,slot=$host_slot,bus=pcie.0"
        -device "nvme,id=$1,serial=$2,bus=$1-port${3:+,$3}")
}

# vm_namespace ID CONTROLLER SIZE [OPTIONS [NSID [BLKDEBUG-OPTIONS]]]: a namespace with an empty image. The
# requests pass blkdebug, so that some can be made to fail (blkdebug_rule).
vm_namespace() {
    truncate -s "$3" "$host_images/$1.img"
    host_drives+=(-drive "if=none,id=$1-image,format=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=$host_images/$1.img,cache.no-flush=on,discard=unmap${6:+,$6}"
        -device "nvme-ns,id=$1-ns,bus=$2,nsid=${5:-1},drive=$1-image${4:+,$4}")
}

# blkdebug_rule N read|write SECTOR [ONCE]: the Nth rule, that such a request fails, each time; or only the first one,
# if ONCE is on. The drive says of neither that it is not to be retried.
blkdebug_rule() {
    local rule=file.inject-error.$1
    printf '%s' "$rule.event=none,$rule.iotype=$2,$rule.sector=$3,$rule.errno=5,$rule.once=${4:-off}"
}

# blkdebug_bad: the rules of the drive that fails; drive_test.cc knows them.
blkdebug_bad() {
    local rules n
    rules=$(blkdebug_rule 0 read 2048),$(blkdebug_rule 1 write 4096)
    for n in {0..7}; do
        rules+=,$(blkdebug_rule $((2 + 2 * n)) read $((16384 + 512 * n)) on)
        rules+=,$(blkdebug_rule $((3 + 2 * n)) write $((32768 + 512 * n)) on)
    done
    printf '%s' "$rules"
}

# vm_drives FOLDER [EXTRA]: sets host_drives to QEMU's arguments for the drives above, with images in FOLDER.
vm_drives() {
    local extra
    host_drives=()
    host_slot=0
    host_images=$1
    vm_controller vql-512 vql-512 max_ioqpairs=8,msix_qsize=9
    vm_namespace vql-512 vql-512 1G
    vm_controller vql-4k vql-4k msix_qsize=9,dbcs=off
    vm_namespace vql-4k vql-4k 1G logical_block_size=4096,physical_block_size=4096
    vm_namespace vql-4k-512 vql-4k 64M '' 2
    vm_controller vql-2q vql-2q max_ioqpairs=2,msix_qsize=3,dbcs=off
    vm_namespace vql-2q vql-2q 256M
    vm_namespace vql-2q-metadata vql-2q 8M ms=8 2
    vm_namespace vql-2q-protected vql-2q 8M ms=8,pi=1 3
    vm_namespace vql-2q-1k vql-2q 8M logical_block_size=1024,physical_block_size=1024 4
    host_drives+=(-device nvme-subsys,id=vql-two)
    vm_controller vql-two-a vql-two subsys=vql-two
    vm_controller vql-two-b vql-two subsys=vql-two
    vm_namespace vql-two vql-two-a 256M shared=on
    for extra in ${2:-}; do
        case $extra in
        failing)
            vm_controller vql-bad vql-bad
            vm_namespace vql-bad vql-bad 64M '' 1 "$(blkdebug_bad)"
            ;;
        odd)
            vm_controller vql-odd vql-odd mqes=31,use-intel-id=on
            vm_namespace vql-odd vql-odd 64M
            ;;
        *) die "'$extra' is not one of the drives that a case can ask for" ;;
        esac
    done
}

# host_need KERNEL: dies or skips unless a VM with scripts/kernel's KERNEL, host or debug, can be booted. The
# debug kernel does several times the work for the same instructions, hence VQL_SLOWER.
host_need() {
    local -a missing
    local status=0 guest_kernel
    host_suffix=
    [[ $1 == host ]] || host_suffix=-$1
    [[ $1 != debug ]] || VQL_SLOWER=$((VQL_SLOWER * 8))
    mapfile -t missing < <(vm_missing)
    ((${#missing[@]} == 0)) || skip "no ${missing[*]}: run scripts/setup"
    host_kernel=$("$top/scripts/kernel" "$1") || status=$?
    ((status != 77)) || skip "no kernel to boot (above)"
    ((status == 0)) || die "no kernel to boot (above)"
    # In the VM a link on the way there would lead nowhere.
    host_kernel=$(realpath "$host_kernel")
    guest_kernel=$("$top/scripts/kernel" guest) || die "no guest kernel (above)"
    [[ -x $VQL_BUILD/tests/vm/tsc_khz ]] || die "no $VQL_BUILD/tests/vm/tsc_khz: run make vm-programs"
    mkdir -p "$VQL_BUILD/vm"
    host_guest_initrd=$VQL_BUILD/vm/guest.initrd
    vm_guest_initrd "$guest_kernel" "$host_guest_initrd"
    vm_accel "$guest_kernel" "$host_guest_initrd" "$VQL_BUILD/vm"
    vm_accel_arguments
    host_initrd=$VQL_BUILD/vm/host.initrd
    "$vm_dir/initrd" "$host_kernel" "$vm_dir/host-init" "$host_initrd"
}

# host_count_instructions: before host_need: the VM is emulated and has one CPU, whose clock advances by a nanosecond
# with each of its instructions, and with nothing else while it is not idle.
host_count_instructions() {
    export VQL_ACCEL=tcg VQL_TSC_KHZ=1000000
    host_icount=yes
}

# What the VM's own guests run with, unless a machine is booted otherwise: kvm, where the VM has it, or tcg.
host_guests=${VQL_GUESTS:-kvm}
[[ $host_guests == kvm || $host_guests == tcg ]] || die "VQL_GUESTS is '$VQL_GUESTS', want kvm or tcg"

# host_start OUT IOMMU MEMORY SECONDS [EXTRA-DRIVES]: boots the host VM, which runs OUT/list, and sets vm_pid as vm_start
# does. host_paths names further folders to show; host_guests is what guests of its own run with. OUT gets result, console,
# qemu.log. IOMMU is off, pt
# (there, but passing through), strict (it translates, and a mapping that ends is invalid at once: group type DMA) or
# lazy (it translates, but what is unmapped may stay valid for some 10 ms: DMA-FQ, Debian's default).
host_start() {
    local out=$1 append
    local -a iommu=() cpus=("${vm_accel_args[@]}" -smp 2)
    append="console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off"
    append+=" vql.top=$top vql.out=$out vql.iommu=$2 vql.slower=$VQL_SLOWER vql.kernel=$host_kernel vql.paths=$VQL_BUILD:$host_kernel${host_paths:+:$host_paths}"
    case $2 in
    off) ;;
    pt) append+=" intel_iommu=on iommu=pt" ;;
    strict) append+=" intel_iommu=on iommu.passthrough=0 iommu.strict=1" ;;
    lazy) append+=" intel_iommu=on iommu.passthrough=0 iommu.strict=0" ;;
    *) die "IOMMU is '$2', want off, pt, strict or lazy" ;;
    esac
    [[ $2 == off ]] || iommu=(-device 'intel-iommu,intremap=on')
    [[ -z ${host_icount:-} ]] || cpus=("${vm_accel_args[@]/thread=multi/thread=single}" -smp 1 -icount shift=0)
    append+=" vql.guests=$host_guests $vm_accel_append"
    mkdir -p "$out/images"
    vm_drives "$out/images" "${5:-}"
    truncate -s 0 "$out/result" "$out/console"
    # Folders outlive a sleep of the machine only on devices that keep their state then.
    # The third serial port is the monitor, so that a case can pull out the drive it uses.
    # Unix sockets have short names: hence the cd.
    (cd "$out" && exec timeout --kill-after=5 "$4" qemu-system-x86_64 \
        -nodefaults -no-user-config -no-reboot -display none -monitor none \
        "${cpus[@]}" -m "$3" -M q35,kernel-irqchip=split \
        -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off \
        "${iommu[@]}" \
        -chardev "file,id=console,path=$out/console" -serial chardev:console \
        -chardev "file,id=result,path=$out/result" -serial chardev:result \
        -chardev "socket,id=monitor,path=monitor,server=on,wait=off" -mon chardev=monitor,mode=control \
        -chardev "socket,id=port,path=monitor" -serial chardev:port \
        -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap \
        -device pcie-root-port,id=root-port,chassis=101,slot=101,bus=pcie.0 \
        -device virtio-9p-pci,fsdev=root,mount_tag=root,bus=root-port,x-pcie-pm-no-soft-reset=on \
        -fsdev "local,id=out,path=$out,security_model=none" \
        -device pcie-root-port,id=out-port,chassis=102,slot=102,bus=pcie.0 \
        -device virtio-9p-pci,fsdev=out,mount_tag=out,bus=out-port,x-pcie-pm-no-soft-reset=on \
        -kernel "$host_kernel/vmlinuz" -initrd "$host_initrd" -append "$append" \
        "${host_drives[@]}" </dev/null >"$out/qemu.log" 2>&1) &
    vm_pid=$!
}

# host_stop: ends the VM, if there is one, and what its drives took; sets vm_status. timeout passes the signal on.
host_stop() {
    [[ -n ${vm_pid:-} ]] || return 0
    kill -TERM "$vm_pid" 2>/dev/null
    vm_status=0
    wait "$vm_pid" 2>/dev/null || vm_status=$?
    vm_pid=
    rm -rf "$host_images"
}

# host_script OUT NAME SECONDS SCRIPT ARGUMENT...: adds the script to what the VM that uses OUT runs.
host_script() {
    local out=$1 name=$2 seconds=$3
    shift 3
    mkdir -p "$out/$name"
    : >"$out/$name/log"
    printf 'export VQL_TOP=%q VQL_BUILD=%q VQL_KERNEL=%q VQL_OUT=%q VQL_KMOD=%q\n' \
        "$top" "$VQL_BUILD" "$host_kernel" "$out/$name" "$top/build/kmod${host_suffix}/vqlane.ko" >"$out/$name/script"
    # What repeats a run, or makes it longer or shorter.
    local word
    for word in VQL_SEED VQL_TEST_SCALE TORTURE_KILLS TORTURE_SECONDS; do
        [[ -z ${!word:-} ]] || printf 'export %s=%q\n' "$word" "${!word}" >>"$out/$name/script"
    done
    printf 'export VQL_GUEST_INITRD=%q VQL_TSC_KHZ=%q VQL_GUEST_FILES=24\ncd "$VQL_OUT"\nexec bash' \
        "$host_guest_initrd" "${VQL_TSC_KHZ:-}" >>"$out/$name/script"
    printf ' %q' "$@" >>"$out/$name/script"
    echo "$name $seconds" >>"$out/list"
}

# host_said OUT RUN: the kernel's words while RUN ran. Without RUN: those while none did.
#
# One report of lockdep's is made "known: …" of: pciehp takes its reset_lock below pci_rescan_remove_lock in
# pciehp_unconfigure_device(), and above it everywhere else. Drivers have no part in that, and a report with
# anything else in it stays as it is. No report follows the first, so pulling a drive wants a machine alone.
host_said() {
    tr -d '\r' <"$1/console" |
        if (($# == 2)); then
            sed -n "/vqlane-vm: case $2\$/,/vqlane-vm: end $2\$/p"
        else
            sed '/vqlane-vm: case /,/vqlane-vm: end /d'
        fi | awk '
            function tell() {
                if (ended && report ~ /trying to acquire lock:\n[^\n]*\(&ctrl->reset_lock\)[^\n]* at: pciehp_unconfigure_device/ &&
                    report ~ /already holding lock:\n[^\n]*\(pci_rescan_remove_lock\)/ && report ~ /\n1 lock held by irq\/[0-9]+-pciehp/ &&
                    report !~ /\[[a-z_]+\]\n/ && gsub(/(WARNING|BUG|Oops|KASAN|UBSAN|DMAR|panic)/, "&", report) == 1)
                    print "known: the order of the locks of the kernel'"'"'s own pciehp"
                else
                    printf "%s", report
                report = ""
            }
            /^=+$/ && report == "" { report = $0 "\n"; ended = 0; next }
            report != "" {
                report = report $0 "\n"
                ended = /^ <\/TASK>$/
                if (ended || ++lines > 200) { tell(); lines = 0 }
                next
            }
            { print }
            END { tell() }'
}

# host_complaints_of OUT RUN: of what the kernel said, as in host_said, what it should not have; false if nothing.
host_complaints_of() { host_said "$@" | grep -E "$host_complaints"; }

# host_died_of_svm OUT RUN: has the VM's kernel died, while RUN ran, of what QEMU's emulation of SVM is known to do to it:
# in one of 40 or more boots of a guest with KVM the end of a task's stack is overwritten, and the scheduler finds it? Only
# if such a guest was running, and if the kernel had complained of nothing before: anything else is a fault to be seen.
host_died_of_svm() {
    host_said "$@" | COMPLAINTS=$host_complaints awk '
        /vqlane-vm: guest begins, kvm$/ { guests++ }
        /vqlane-vm: guest ends$/ && guests { guests-- }
        !over && /Kernel panic - not syncing: corrupted stack end detected inside scheduler$/ { found = guests > 0 }
        $0 ~ ENVIRON["COMPLAINTS"] { over = 1 }
        END { exit !found }'
}
