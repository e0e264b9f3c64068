// SPDX-License-Identifier: GPL-2.0-only
// Cuts a request into descriptors in every way that virtio allows (§2.7.4: a device makes no
// assumption about the framing), and scatters the pieces over an arena of guest memory.
#pragma once

#include "blk_driver.h"
#include "random.h"

namespace vql::guest {

struct layout_options {
    bool misaligned = true;    // pieces of any length at any address
    bool zero_length = true;   // empty descriptors among the others
    unsigned max_pieces = 100; // of the data; more than 128: often so many
    unsigned max_descriptors = usual_segments;
};

struct arena {
    uint64_t gpa;
    uint64_t bytes;
    // Enough for a request of that many data bytes, whatever its layout.
    static uint64_t bytes_for(uint64_t data_bytes, unsigned max_pieces = 100) {
        return data_bytes + (max_pieces + 24) * uint64_t{4096 + 64};
    }
};

// Shapes request: `out` follows the header in what the device reads, data_in bytes precede the
// status in what it writes. The writable bytes are filled with a pattern, and so are guards around
// every piece.
void shape_randomly(random_source& random, guest_memory& memory, const arena& place,
                    const layout_options& options, blk_request& request,
                    std::span<const std::byte> out, uint32_t data_in);

// What the device wrote before the status byte, piece by piece, compared with `expected`. Returns
// the offset of the first difference, or expected.size().
size_t compare_in(const guest_memory& memory, const blk_request& request,
                  std::span<const std::byte> expected);

// True if nothing was written beside the pieces, nor into those that the device only reads.
bool guards_intact(const guest_memory& memory, const blk_request& request);

// The chain in words, for a failure's message.
std::string describe(const blk_request& request);

} // namespace vql::guest
