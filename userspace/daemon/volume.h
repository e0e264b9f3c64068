// SPDX-License-Identifier: GPL-2.0-only
// A volume: the virtual block range of a disk, laid out over parts of targets. Turns a disk's
// configuration into chunk size, capacity, and extent words.
#pragma once

#include "base/result.h"
#include "daemon/config.h"
#include "daemon/targets.h"

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace vql {

struct volume {
    std::vector<claim> parts;     // in the disk's order; all but the last of whole chunks
    std::vector<target*> targets; // each once: what a flush has to reach
    uint64_t bytes = 0;           // capacity
    uint32_t chunk_shift = 0;
    uint32_t block_bytes = 512; // the largest logical block of its targets
    bool discard = true;        // all of its targets can, and are to

    uint32_t chunks() const { return uint32_t((bytes + (1ull << chunk_shift) - 1) >> chunk_shift); }
};

// Refused: unknown targets, parts beyond a target's end, offsets and lengths no chunk size fits, a
// size beyond the sum of the parts, a writable disk on a read-only target.
// Targets have as many bytes as they say, but at least @grown, which one is to be grown to later.
result<volume> plan_volume(const disk_config& c, const target_set& targets, uint64_t grown = 0);
// The same over any targets: @find gives the one of a name, or null.
result<volume> plan_volume(const disk_config& c,
                           const std::function<target*(const std::string& name)>& find,
                           uint64_t grown = 0);

// Is a table for @bytes in chunks of 2^@chunk_shift bytes one that we can have?
result<void> check_chunks(const std::string& disk, uint64_t bytes, uint32_t chunk_shift);

// The words of @v for a table of @v.chunks() entries.
void write_extents(const volume& v, std::span<uint64_t> words);

} // namespace vql
