// SPDX-License-Identifier: GPL-2.0-only
// Random extent tables and lookups, for the tests of remap.h in C++ and in BPF.
#pragma once

#include "ring_memory.h"
#include "vqlane/remap.h"

namespace vql::test {

// Fills @word with runs of all kinds: ascending neighbours (which merge), the same chunk again,
// descending ones, other targets, holes, moving chunks, edges of the fields, unknown states.
inline void fill_extents(random_source& r, __u64* word, size_t chunks) {
    for (size_t i = 0; i < chunks;) {
        const uint64_t kind = r.between(0, 9);
        auto target = static_cast<uint32_t>(r.between(0, VQL_MAX_TARGETS - 1));
        uint64_t chunk = r.any() & VQL_EXTENT_CHUNK_MASK;
        if (r.one_in(4))
            chunk = VQL_EXTENT_CHUNK_MASK - r.between(0, 3); // runs into the end of the field
        if (r.one_in(4))
            chunk = r.between(0, 3);
        if (r.one_in(8))
            target = VQL_MAX_TARGETS - 1;
        const size_t long_run = r.one_in(12) ? 300 : 8;
        for (size_t end = std::min(chunks, i + r.between(1, long_run)); i < end; i++) {
            enum vql_extent_state state = VQL_EXTENT_MAPPED;
            if (kind == 0)
                state = VQL_EXTENT_HOLE;
            else if (kind == 1)
                state = VQL_EXTENT_MOVING;
            word[i] = vql_extent_word(state, target, chunk);
            if (kind == 2) // a state that does not exist (yet)
                word[i] = (word[i] & ~(15ull << 60)) | r.between(3, 15) << 60;
            if (kind == 3)
                chunk--;
            else if (kind == 4)
                target = (target + 1) % VQL_MAX_TARGETS;
            else if (kind != 5)
                chunk++;
        }
    }
}

struct lookup {
    uint64_t sector, sectors;
};

// A lookup in or around a table of @chunks chunks of 1 << @shift bytes.
inline lookup random_lookup(random_source& r, uint32_t shift, uint64_t chunks) {
    const uint64_t chunk_sectors = 1ull << (shift - VQL_SECTOR_SHIFT);
    lookup l{r.between(0, chunks * chunk_sectors - 1), r.between(1, 256)};
    if (r.one_in(3)) // on and next to the edge of a chunk; the last one is the table's end
        l.sector = r.between(1, chunks) * chunk_sectors - r.between(0, 2);
    if (r.one_in(50))
        l.sector = r.any();
    if (r.one_in(4)) // a whole number of chunks, or nearly
        l.sectors = r.between(1, 300) * chunk_sectors - r.between(0, 1);
    if (r.one_in(8))
        l.sectors = VQL_MAX_IO_BYTES >> VQL_SECTOR_SHIFT;
    if (r.one_in(8))
        l.sectors = VQL_MAX_DISCARD_SECTORS;
    if (r.one_in(50))
        l.sectors = r.any() | 1;
    return l;
}

} // namespace vql::test
