// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/volume.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <vqlane/remap.h>

namespace vql {

namespace {

using finder = std::function<target*(const std::string& name)>;

result<claim> plan_part(const disk_config& c, const extent_config& e, const finder& find,
                        uint64_t grown) {
    target* t = find(e.target);
    if (!t)
        return error{"disk " + c.name + ": target " + e.target + " does not exist"};
    if (t->read_only && !c.read_only)
        return error{"disk " + c.name + ": " + t->path + " " + t->why_read_only +
                     "; set read_only = true for the disk"};
    const uint64_t bytes = std::max(t->bytes, grown);
    if (e.offset >= bytes || e.length > bytes - e.offset)
        return error{"disk " + c.name + ": an extent of " + std::to_string(e.length) +
                     " bytes at offset " + std::to_string(e.offset) + " ends beyond target " +
                     t->name + " of " + std::to_string(bytes) + " bytes"};
    return claim{t, e.offset, e.length ? e.length : bytes - e.offset, c.name, c.read_only};
}

// The largest chunk that all offsets, and all lengths but the last, are multiples of.
result<uint32_t> choose_chunk_shift(const disk_config& c, const volume& v) {
    uint64_t all = 1ull << VQL_MAX_CHUNK_SHIFT;
    for (const claim& p : v.parts) {
        all |= p.offset;
        if (&p != &v.parts.back())
            all |= p.bytes;
    }
    const auto fits = uint32_t(std::countr_zero(all));
    if (c.chunk_bytes) {
        const auto wanted = uint32_t(std::countr_zero(c.chunk_bytes));
        if (wanted > fits)
            return error{"disk " + c.name +
                         ": extent offsets and lengths are not multiples of "
                         "chunk_size " +
                         std::to_string(c.chunk_bytes) + " (the largest that fits is " +
                         std::to_string(1ull << fits) + ")"};
        return wanted;
    }
    if (fits < VQL_MIN_CHUNK_SHIFT)
        return error{"disk " + c.name +
                     ": extent offsets, and all lengths but the last, must be "
                     "multiples of 64K"};
    return fits;
}

} // namespace

result<volume> plan_volume(const disk_config& c, const target_set& targets, uint64_t grown) {
    return plan_volume(
        c, [&](const std::string& name) { return targets.find(name); }, grown);
}

result<volume> plan_volume(const disk_config& c, const finder& find, uint64_t grown) {
    volume v;
    uint64_t sum = 0;
    v.discard = c.discard;
    for (const extent_config& e : c.extents) {
        auto part = plan_part(c, e, find, grown);
        if (!part)
            return part.failure();
        v.parts.push_back(*part);
        sum += part->bytes;
        target* t = part->where;
        if (std::find(v.targets.begin(), v.targets.end(), t) == v.targets.end())
            v.targets.push_back(t);
        v.block_bytes = std::max(v.block_bytes, t->block_bytes);
        v.discard = v.discard && t->discard;
    }
    v.bytes = c.bytes ? c.bytes : sum & ~uint64_t(v.block_bytes - 1);
    if (v.bytes > sum)
        return error{"disk " + c.name + ": size " + std::to_string(v.bytes) +
                     " is beyond its targets' " + std::to_string(sum) + " bytes"};
    if (!v.bytes || v.bytes % v.block_bytes)
        return error{"disk " + c.name + ": size " + std::to_string(v.bytes) +
                     " is not a multiple of its blocks of " + std::to_string(v.block_bytes) +
                     " bytes"};
    auto shift = choose_chunk_shift(c, v);
    if (!shift)
        return shift.failure();
    v.chunk_shift = *shift;
    if (auto ok = check_chunks(c.name, v.bytes, v.chunk_shift); !ok)
        return ok.failure();
    return v;
}

// The table is an array of at most 2^32 entries, and 16 M is what we were built for.
result<void> check_chunks(const std::string& disk, uint64_t bytes, uint32_t chunk_shift) {
    if (bytes >> chunk_shift > 16u << 20)
        return error{"disk " + disk + ": more than 16 million chunks; choose a larger chunk_size"};
    return {};
}

void write_extents(const volume& v, std::span<uint64_t> words) {
    size_t at = 0;
    for (const claim& p : v.parts) {
        const uint64_t first = p.offset >> v.chunk_shift;
        const uint64_t chunks = (p.bytes + (1ull << v.chunk_shift) - 1) >> v.chunk_shift;
        for (uint64_t i = 0; i < chunks && at < words.size(); i++, at++)
            __atomic_store_n(&words[at], vql_extent_word(VQL_EXTENT_MAPPED, p.where->id, first + i),
                             __ATOMIC_RELAXED);
    }
}

} // namespace vql
