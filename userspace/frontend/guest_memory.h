// SPDX-License-Identifier: GPL-2.0-only
// A guest's memory: mapped from the descriptors its VMM sent, or one mapping of the kernel
// module's.
//
// A VMM may truncate the file behind a mapping at any time, and the module takes back what it lent;
// whoever touches the lost pages gets SIGBUS. A handler then puts zero pages under the whole
// mapping, so that the thread goes on, and marks it lost: its owner is to drop the guest.
#pragma once

#include "base/fd.h"
#include "base/kmod.h"
#include "base/result.h"

#include <cstdint>
#include <memory>
#include <vector>
#include <vqlane/mem.h>

namespace vql {

struct memory_slot {
    uint64_t guest; // guest physical address
    uint64_t bytes;
    uint64_t vmm; // the same memory's address in the VMM (ring addresses come as these)
    uint64_t file_offset;
};

class guest_memory {
  public:
    guest_memory() = default;
    ~guest_memory();
    guest_memory(const guest_memory&) = delete;
    guest_memory& operator=(const guest_memory&) = delete;

    // Map @slot from @fd. Refused: empty, wrapping, overlapping, beyond the end of the file, too
    // many.
    result<void> add(const memory_slot& slot, const unique_fd& fd);
    // Unmap the slot with the same guest and VMM address and size. No queue may be running.
    result<void> remove(const memory_slot& slot);
    // Take all of a vDPA disk's guest memory, as the module has it. This memory is empty before.
    result<void> add(kmod_mspace space);
    void clear();

    bool empty() const { return regions_.empty(); }
    vql_mem view() const { return {regions_.data(), uint32_t(regions_.size()), 0}; }
    const std::vector<vql_region>& regions() const { return regions_; }

    // [vmm, vmm + bytes) in one region, or null.
    uint8_t* from_vmm(uint64_t vmm, uint64_t bytes) const;
    // [guest, guest + bytes) in one region, which the device may write if it is to; or null.
    uint8_t* from_guest(uint64_t guest, uint64_t bytes, bool write) const;
    // The guest address of @p, which lies in a region (the inverse of vql_mem_map).
    uint64_t guest_of(const void* p) const;
    // Can io_uring pin it? Not what the module maps page by page, without the kernel's leave to
    // hold on to them.
    bool pinnable() const { return !space_; }
    // Is the region's memory, if pinnable, of huge pages, which are allocated in advance?
    bool huge(size_t region) const { return maps_[region].huge; }
    // The module's object for it, or null when it came from a VMM.
    const kmod_mspace* space() const { return space_ ? &space_ : nullptr; }

    // Was a page of it lost?
    bool lost() const;

  private:
    struct map_entry {
        mapping map; // whole pages around the region
        memory_slot slot;
        bool huge;
        int guard; // index of its SIGBUS guard
    };
    // Sorted by guest address, and parallel; or the module's, with one mapping for all.
    std::vector<vql_region> regions_;
    std::vector<map_entry> maps_;
    kmod_mspace space_;
    mapping space_map_;
    int space_guard_ = -1;
};

// Install the SIGBUS handler of the process. Once, before any guest is mapped.
result<void> guard_guest_memory();

// A range guarded against SIGBUS, for shared memory that a client can truncate (in-flight region,
// dirty log). Returns its index, or -1 when the table is full (then the range may not be used).
int add_guard(void* base, size_t bytes);
void remove_guard(int guard);
bool guard_tripped(int guard);
// How often any guard was tripped, in the whole process: cheap to look at.
uint64_t guard_trips();

} // namespace vql
