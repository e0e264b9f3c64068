// SPDX-License-Identifier: GPL-2.0-only
// A guest's memory: slots of shared memory at chosen guest physical addresses.
//
// All slots are mapped into one window of address space, so that guest address and pointer differ
// by a constant and a buffer may reach from one slot into the next; to the device they are still
// separate files with unrelated user addresses.
#pragma once

#include "posix.h"

#include <map>
#include <memory>
#include <vector>

namespace vql::guest {

struct memory_slot {
    uint64_t gpa = 0;
    uint64_t bytes = 0;
    uint64_t user_addr = 0; // what vhost-user calls the user address; our own choice, no pointer
    uint64_t file_offset = 0;
    std::shared_ptr<unique_fd> file;
};

class guest_memory {
  public:
    // An empty guest whose slots will lie in [base, limit).
    guest_memory(uint64_t base, uint64_t limit);
    guest_memory(const guest_memory&) = delete;
    guest_memory& operator=(const guest_memory&) = delete;
    ~guest_memory();

    // count adjacent slots from base on, in one file in reverse order, so that neighbours in guest
    // memory are never neighbours in the file.
    static std::unique_ptr<guest_memory> in_pieces(uint64_t base, uint64_t slot_bytes,
                                                   unsigned count);

    void add_slot(uint64_t gpa, uint64_t bytes);
    void add_slot(uint64_t gpa, uint64_t bytes, std::shared_ptr<unique_fd> file,
                  uint64_t file_offset);
    // The slot must have no allocation left in it.
    void remove_slot(uint64_t gpa);
    const std::vector<memory_slot>& slots() const { return slots_; }
    const memory_slot& slot_of(uint64_t gpa) const;
    uint64_t user_addr(uint64_t gpa) const;
    uint64_t end() const;

    std::byte* at(uint64_t gpa) const { return window_ + (gpa - base_); }
    template <typename T>
    T* as(uint64_t gpa) const {
        return reinterpret_cast<T*>(at(gpa));
    }
    std::span<std::byte> span(uint64_t gpa, uint64_t bytes) const { return {at(gpa), bytes}; }

    // Buffers of tests. They may straddle slots unless asked otherwise. remainder: gpa % align.
    uint64_t allocate(uint64_t bytes, uint64_t align = 16, uint64_t remainder = 0);
    uint64_t allocate_in_one_slot(uint64_t bytes, uint64_t align, uint64_t remainder = 0);
    void free(uint64_t gpa, uint64_t bytes);

  private:
    uint64_t take(uint64_t bytes, uint64_t align, uint64_t remainder, bool in_one_slot);

    std::byte* window_ = nullptr;
    uint64_t base_;
    uint64_t window_bytes_;
    unsigned slots_made_ = 0;
    std::vector<memory_slot> slots_;
    std::map<uint64_t, uint64_t> free_; // first address → end, neighbours merged
};

} // namespace vql::guest
