// SPDX-License-Identifier: GPL-2.0-only
#include "guest_memory.h"

#include <algorithm>
#include <sys/mman.h>

namespace vql::guest {

guest_memory::guest_memory(uint64_t base, uint64_t limit)
    : base_(base), window_bytes_(limit - base) {
    void* window =
        mmap(nullptr, window_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (window == MAP_FAILED) {
        throw_errno("mmap of the guest memory window");
    }
    window_ = static_cast<std::byte*>(window);
}

guest_memory::~guest_memory() {
    munmap(window_, window_bytes_);
}

std::unique_ptr<guest_memory> guest_memory::in_pieces(uint64_t base, uint64_t slot_bytes,
                                                      unsigned count) {
    auto memory = std::make_unique<guest_memory>(base, base + slot_bytes * count);
    auto file = std::make_shared<unique_fd>(make_memfd("guest", slot_bytes * count));
    for (unsigned i = 0; i < count; i++) {
        memory->add_slot(base + i * slot_bytes, slot_bytes, file, (count - 1 - i) * slot_bytes);
    }
    return memory;
}

void guest_memory::add_slot(uint64_t gpa, uint64_t bytes) {
    add_slot(gpa, bytes, std::make_shared<unique_fd>(make_memfd("guest", bytes)), 0);
}

void guest_memory::add_slot(uint64_t gpa, uint64_t bytes, std::shared_ptr<unique_fd> file,
                            uint64_t file_offset) {
    if (gpa < base_ || gpa + bytes > base_ + window_bytes_) {
        throw guest_error("memory slot at " + hex(gpa) + " is outside the window");
    }
    if (mmap(at(gpa), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file->get(),
             static_cast<off_t>(file_offset)) == MAP_FAILED) {
        throw_errno("mmap of a memory slot");
    }
    // Far apart and in no relation to the guest address, so that mixing the two up is noticed.
    uint64_t user = 0x100000000000 + (uint64_t{++slots_made_} << 36) + 0x7000000;
    slots_.push_back({gpa, bytes, user, file_offset, std::move(file)});
    free(gpa, bytes);
}

void guest_memory::remove_slot(uint64_t gpa) {
    auto slot = std::find_if(slots_.begin(), slots_.end(),
                             [gpa](const memory_slot& s) { return s.gpa == gpa; });
    if (slot == slots_.end()) {
        throw guest_error("no memory slot at " + hex(gpa));
    }
    auto range = free_.upper_bound(gpa);
    if (range == free_.begin() || (--range)->second < gpa + slot->bytes) {
        throw guest_error("the memory slot at " + hex(gpa) + " is in use");
    }
    auto [first, end] = *range;
    free_.erase(range);
    if (first < gpa) {
        free_[first] = gpa;
    }
    if (gpa + slot->bytes < end) {
        free_[gpa + slot->bytes] = end;
    }
    mmap(at(gpa), slot->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
    slots_.erase(slot);
}

const memory_slot& guest_memory::slot_of(uint64_t gpa) const {
    for (const memory_slot& slot : slots_) {
        if (gpa >= slot.gpa && gpa - slot.gpa < slot.bytes) {
            return slot;
        }
    }
    throw guest_error("guest address " + hex(gpa) + " is in no slot");
}

uint64_t guest_memory::user_addr(uint64_t gpa) const {
    const memory_slot& slot = slot_of(gpa);
    return slot.user_addr + (gpa - slot.gpa);
}

uint64_t guest_memory::end() const {
    uint64_t end = 0;
    for (const memory_slot& slot : slots_) {
        end = std::max(end, slot.gpa + slot.bytes);
    }
    return end;
}

uint64_t guest_memory::allocate(uint64_t bytes, uint64_t align, uint64_t remainder) {
    return take(bytes, align, remainder, false);
}

uint64_t guest_memory::allocate_in_one_slot(uint64_t bytes, uint64_t align, uint64_t remainder) {
    return take(bytes, align, remainder, true);
}

uint64_t guest_memory::take(uint64_t bytes, uint64_t align, uint64_t remainder, bool in_one_slot) {
    auto aligned = [&](uint64_t gpa) { return gpa + (align + remainder - gpa % align) % align; };
    for (auto range = free_.begin(); range != free_.end(); ++range) {
        auto [first, end] = *range;
        uint64_t gpa = aligned(first);
        if (in_one_slot && gpa < end) {
            const memory_slot* slot = &slot_of(gpa);
            while (gpa + bytes > slot->gpa + slot->bytes && slot->gpa + slot->bytes < end) {
                gpa = aligned(slot->gpa + slot->bytes);
                slot = &slot_of(gpa);
            }
            if (gpa + bytes > slot->gpa + slot->bytes) {
                continue;
            }
        }
        if (gpa + bytes > end) {
            continue;
        }
        free_.erase(range);
        if (first < gpa) {
            free_[first] = gpa;
        }
        if (gpa + bytes < end) {
            free_[gpa + bytes] = end;
        }
        return gpa;
    }
    throw guest_error("guest memory is used up");
}

void guest_memory::free(uint64_t gpa, uint64_t bytes) {
    uint64_t end = gpa + bytes;
    auto next = free_.lower_bound(gpa);
    if (next != free_.end() && next->first == end) {
        end = next->second;
        next = free_.erase(next);
    }
    if (next != free_.begin()) {
        auto before = std::prev(next);
        if (before->second == gpa) {
            before->second = end;
            return;
        }
    }
    free_[gpa] = end;
}

} // namespace vql::guest
