// SPDX-License-Identifier: GPL-2.0-only
#include "frontend/guest_memory.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>
#include <string>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <vqlane/limits.h>

namespace vql {

namespace {

// One guarded range. Whoever maps it fills the entry, under the mutex, and clears it; the handler,
// on whatever thread faulted, reads it. bytes is the flag: it is written last (release) when an
// entry is filled, and cleared first, before the range is unmapped, so the handler never repairs a
// range that is gone.
struct guard_entry {
    std::atomic<uintptr_t> base{0};
    std::atomic<size_t> bytes{0};
    std::atomic<bool> tripped{false};
};
constexpr size_t max_guards = size_t{VQL_MAX_DISKS} * 16;
std::array<guard_entry, max_guards> guards;
std::mutex filling;
std::atomic<size_t> guards_used{0}; // high-water mark
std::atomic<uint64_t> trips{0};

// async-signal-safe: atomics and mmap(2) only.
void on_sigbus(int sig, siginfo_t* info, void*) {
    const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
    const size_t n = guards_used.load(std::memory_order_acquire);
    for (size_t i = 0; i < n; i++) {
        guard_entry& g = guards[i];
        const size_t bytes = g.bytes.load(std::memory_order_acquire);
        const uintptr_t base = g.base.load(std::memory_order_relaxed);
        if (!bytes || at - base >= bytes)
            continue;
        void* p = mmap(reinterpret_cast<void*>(base), bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            break;
        g.tripped.store(true, std::memory_order_release);
        trips.fetch_add(1, std::memory_order_release);
        return;
    }
    // Not a guest's: our own bug, or a failing machine. Die as we would have.
    signal(sig, SIG_DFL);
    raise(sig);
}

} // namespace

result<void> guard_guest_memory() {
    struct sigaction sa {};
    sa.sa_sigaction = on_sigbus;
    sa.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigemptyset(&sa.sa_mask);
    if (sigaction(SIGBUS, &sa, nullptr) < 0)
        return errno_error("sigaction(SIGBUS)", errno);
    return {};
}

int add_guard(void* base, size_t bytes) {
    std::lock_guard lock(filling);
    for (size_t i = 0; i < max_guards; i++) {
        guard_entry& g = guards[i];
        if (g.bytes.load(std::memory_order_relaxed))
            continue;
        g.tripped.store(false, std::memory_order_relaxed);
        g.base.store(reinterpret_cast<uintptr_t>(base), std::memory_order_relaxed);
        g.bytes.store(bytes, std::memory_order_release);
        if (i >= guards_used.load(std::memory_order_relaxed))
            guards_used.store(i + 1, std::memory_order_release);
        return int(i);
    }
    return -1;
}

void remove_guard(int guard) {
    guards[size_t(guard)].bytes.store(0, std::memory_order_release);
}

bool guard_tripped(int guard) {
    return guards[size_t(guard)].tripped.load(std::memory_order_acquire);
}

uint64_t guard_trips() {
    return trips.load(std::memory_order_acquire);
}

guest_memory::~guest_memory() {
    clear();
}

void guest_memory::clear() {
    for (map_entry& m : maps_)
        remove_guard(m.guard);
    if (space_guard_ >= 0)
        remove_guard(space_guard_);
    regions_.clear();
    maps_.clear();
    space_guard_ = -1;
    space_map_ = {};
    space_ = {};
}

result<void> guest_memory::add(const memory_slot& slot, const unique_fd& fd) {
    if (regions_.size() == VQL_MAX_REGIONS)
        return error{"more than " + std::to_string(VQL_MAX_REGIONS) + " memory regions"};
    if (!slot.bytes || slot.guest + slot.bytes < slot.guest || slot.vmm + slot.bytes < slot.vmm ||
        slot.file_offset + slot.bytes < slot.file_offset)
        return error{"memory region is empty or wraps around"};
    struct stat st {};
    if (fstat(fd.get(), &st) < 0)
        return errno_error("memory region's file", errno);
    if (!S_ISREG(st.st_mode) || slot.file_offset + slot.bytes > uint64_t(st.st_size))
        return error{"memory region lies beyond the end of its file"};

    auto at = std::lower_bound(regions_.begin(), regions_.end(), slot.guest,
                               [](const vql_region& r, uint64_t guest) { return r.guest < guest; });
    if (at != regions_.end() && at->guest - slot.guest < slot.bytes)
        return error{"memory regions overlap"};
    if (at != regions_.begin() && slot.guest - at[-1].guest < at[-1].bytes)
        return error{"memory regions overlap"};

    // mmap wants whole pages, of the file's own size where that is larger (hugetlbfs).
    struct statfs fs {};
    constexpr long hugetlbfs_magic = 0x958458f6;
    const bool huge = fstatfs(fd.get(), &fs) == 0 && long(fs.f_type) == hugetlbfs_magic;
    const uint64_t page = huge ? uint64_t(fs.f_bsize) : 4096;
    const uint64_t head = slot.file_offset & (page - 1);
    const uint64_t bytes = (head + slot.bytes + page - 1) & ~(page - 1);
    mapping map =
        mapping::map(fd.get(), bytes, MAP_SHARED | MAP_NORESERVE, off_t(slot.file_offset - head));
    if (!map)
        return errno_error("cannot map a memory region", errno);
    const int guard = add_guard(map.data(), bytes);
    if (guard < 0)
        return error{"too many memory regions in the daemon"};

    const auto index = at - regions_.begin();
    regions_.insert(at, {slot.guest, slot.bytes, map.data() + head, 0});
    maps_.insert(maps_.begin() + index, {std::move(map), slot, huge, guard});
    return {};
}

result<void> guest_memory::add(kmod_mspace space) {
    auto map = space.map();
    if (!map)
        return map.failure();
    space_guard_ = add_guard(map->data(), map->size());
    if (space_guard_ < 0)
        return error{"too many memory regions in the daemon"};
    for (const vql_mregion& r : space.regions())
        regions_.push_back({r.guest, r.bytes, map->data() + r.first_page * 4096,
                            r.flags & VQL_REGION_READ_ONLY ? uint32_t{VQL_MEM_READ_ONLY} : 0});
    space_map_ = std::move(*map);
    space_ = std::move(space);
    return {};
}

result<void> guest_memory::remove(const memory_slot& slot) {
    for (size_t i = 0; i < maps_.size(); i++) {
        const memory_slot& s = maps_[i].slot;
        if (s.guest != slot.guest || s.bytes != slot.bytes || s.vmm != slot.vmm)
            continue;
        remove_guard(maps_[i].guard);
        regions_.erase(regions_.begin() + ptrdiff_t(i));
        maps_.erase(maps_.begin() + ptrdiff_t(i));
        return {};
    }
    return error{"no such memory region"};
}

uint8_t* guest_memory::from_vmm(uint64_t vmm, uint64_t bytes) const {
    for (size_t i = 0; i < maps_.size(); i++) {
        const memory_slot& s = maps_[i].slot;
        if (vmm - s.vmm < s.bytes && s.bytes - (vmm - s.vmm) >= bytes)
            return regions_[i].host + (vmm - s.vmm);
    }
    return nullptr;
}

uint8_t* guest_memory::from_guest(uint64_t guest, uint64_t bytes, bool write) const {
    vql_mem m = view();
    return static_cast<uint8_t*>(vql_mem_flat(&m, guest, bytes, write));
}

uint64_t guest_memory::guest_of(const void* p) const {
    const auto at = reinterpret_cast<uintptr_t>(p);
    for (const vql_region& r : regions_) {
        const uintptr_t offset = at - reinterpret_cast<uintptr_t>(r.host);
        if (offset < r.bytes)
            return r.guest + offset;
    }
    return 0;
}

bool guest_memory::lost() const {
    for (const map_entry& m : maps_)
        if (guard_tripped(m.guard))
            return true;
    return space_guard_ >= 0 && guard_tripped(space_guard_);
}

} // namespace vql
