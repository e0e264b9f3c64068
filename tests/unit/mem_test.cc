// SPDX-License-Identifier: GPL-2.0-only
#include "ring_memory.h"

#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <cstring>

using namespace vql::test;

namespace {

// Two neighbours, a gap, a single byte, and one more far away.
const std::vector<piece> layout = {
    {0x1000, 0x1000}, {0x2000, 0x800}, {0x4000, 1}, {0x1'0000'0000, 0x3000}};

// Addresses on and next to every edge.
std::vector<uint64_t> edges() {
    std::vector<uint64_t> at = {0, 1, UINT64_MAX, UINT64_MAX - 1, 1ull << 63};
    for (const piece& p : layout)
        for (uint64_t d : {0ull, 1ull, 2ull})
            for (uint64_t e : {p.guest, p.guest + p.bytes})
                for (uint64_t a : {e + d, e - d})
                    at.push_back(a);
    return at;
}

} // namespace

TEST_CASE("mem: an address is found in its region and nowhere else", "[mem]") {
    const guest_ram ram(layout);
    vql_mem fresh = ram.mem();
    for (uint64_t guest : edges()) {
        for (uint32_t hint = 0; hint <= 5; hint++) { // 4 and 5: the hint of a longer table
            fresh.hint = hint;
            CAPTURE(guest, hint);
            const vql_region* r = vql_mem_find(&fresh, guest);
            REQUIRE((r != nullptr) == (ram.at(guest) != nullptr));
            if (r)
                REQUIRE(r->host + (guest - r->guest) == ram.at(guest));
        }
    }
    vql_mem none = {nullptr, 0, 0};
    CHECK(vql_mem_find(&none, 0) == nullptr);
    CHECK(vql_mem_flat(&none, 0, 1, false) == nullptr);
}

TEST_CASE("mem: flat translation needs all bytes in one region", "[mem]") {
    const guest_ram ram(layout);
    vql_mem m = ram.mem();
    CHECK(vql_mem_flat(&m, 0x1000, 0x1000, false) == ram.at(0x1000));
    CHECK(vql_mem_flat(&m, 0x1fff, 1, false) == ram.at(0x1fff));
    CHECK(vql_mem_flat(&m, 0x1fff, 2, false) == nullptr); // the neighbour is another mapping
    CHECK(vql_mem_flat(&m, 0x1000, 0x1001, false) == nullptr);
    CHECK(vql_mem_flat(&m, 0x27ff, 2, false) == nullptr);
    CHECK(vql_mem_flat(&m, 0x0fff, 2, false) == nullptr);
    CHECK(vql_mem_flat(&m, 0x1000, UINT64_MAX, false) == nullptr);
    CHECK(vql_mem_flat(&m, 0x1001, UINT64_MAX, false) == nullptr);
    CHECK(vql_mem_flat(&m, UINT64_MAX, 2, false) == nullptr);
}

TEST_CASE("mem: a range is translated byte for byte, or refused", "[mem]") {
    const guest_ram ram(layout);
    vql_mem m = ram.mem();
    for (uint64_t guest : edges()) {
        for (uint64_t bytes : {1ull, 2ull, 3ull, 0x7ffull, 0x800ull, 0x801ull, 0x1000ull, 0x1800ull,
                               0x1801ull, 0x2fffull, 0x3000ull, 0x3001ull}) {
            vql_seg seg[4];
            CAPTURE(guest, bytes);
            uint64_t inside = 0; // bytes until the first that is in no region
            while (inside < bytes && guest + inside >= guest && ram.at(guest + inside))
                inside++;
            const int n = vql_mem_map(&m, guest, bytes, false, seg, 4);
            if (inside < bytes) {
                REQUIRE(n == -EFAULT);
                continue;
            }
            REQUIRE(n >= 1);
            uint64_t at = guest;
            for (int i = 0; i < n; i++) {
                REQUIRE(seg[i].base == ram.at(at));
                REQUIRE(ram.contains(seg[i].base, seg[i].bytes));
                at += seg[i].bytes;
            }
            REQUIRE(at == guest + bytes);
        }
    }
}

TEST_CASE("mem: segments beyond the room are refused, not written", "[mem]") {
    const guest_ram ram({{0x1000, 0x1000}, {0x2000, 0x1000}, {0x3000, 0x1000}});
    vql_mem m = ram.mem();
    vql_seg seg[4];
    std::memset(seg, 0xee, sizeof(seg));
    CHECK(vql_mem_map(&m, 0x1800, 0x2000, false, seg, 2) == -E2BIG);
    CHECK(seg[2].bytes == 0xeeeeeeeeeeeeeeeeull);
    CHECK(vql_mem_map(&m, 0x1800, 1, false, nullptr, 0) == -E2BIG);
    CHECK(vql_mem_map(&m, 0x1800, 0x2000, false, seg, 3) == 3);
    CHECK(seg[2].bytes == 0x800);
    CHECK(seg[3].bytes == 0xeeeeeeeeeeeeeeeeull);
    CHECK(vql_mem_map(&m, 0x1800, 0, false, seg, 3) == 0);
}

TEST_CASE("mem: a range that wraps at 2^64 is refused even where both ends are memory", "[mem]") {
    const uint64_t top = UINT64_MAX - 0xfff; // the last page there is
    const guest_ram ram({{0, 0x1000}, {top, 0x1000}});
    vql_mem m = ram.mem();
    vql_seg seg[4];
    CHECK(vql_mem_map(&m, top, 0x1000, false, seg, 4) == 1);
    CHECK(vql_mem_map(&m, top, 0x1001, false, seg, 4) == -EFAULT);
    CHECK(vql_mem_map(&m, UINT64_MAX, 2, false, seg, 4) == -EFAULT);
    CHECK(vql_mem_map(&m, 1, UINT64_MAX, false, seg, 4) == -EFAULT);
    CHECK(vql_mem_map(&m, 2, UINT64_MAX, false, seg, 4) == -EFAULT);
    CHECK(vql_mem_flat(&m, top, 0x1001, false) == nullptr);
}

TEST_CASE("mem: read-only memory is found for reading only", "[mem]") {
    const guest_ram ram({{0x1000, 0x1000}, {0x2000, 0x1000, VQL_MEM_READ_ONLY}, {0x3000, 0x1000}});
    vql_mem m = ram.mem();
    vql_seg seg[4];
    CHECK(vql_mem_flat(&m, 0x2000, 0x1000, false) == ram.at(0x2000));
    CHECK(vql_mem_flat(&m, 0x2000, 1, true) == nullptr);
    CHECK(vql_mem_flat(&m, 0x2fff, 1, true) == nullptr);
    CHECK(vql_mem_flat(&m, 0x1fff, 1, true) == ram.at(0x1fff));
    CHECK(vql_mem_flat(&m, 0x3000, 0x1000, true) == ram.at(0x3000));
    CHECK(vql_mem_map(&m, 0x1800, 0x2000, false, seg, 4) == 3);
    CHECK(vql_mem_map(&m, 0x1800, 0x800, true, seg, 4) == 1);
    CHECK(vql_mem_map(&m, 0x1800, 0x801, true, seg, 4) == -EFAULT); // its last byte is read-only
    CHECK(vql_mem_map(&m, 0x1800, 0x2000, true, seg, 4) == -EFAULT);
    CHECK(vql_mem_map(&m, 0x2fff, 2, true, seg, 4) == -EFAULT);
    CHECK(vql_mem_map(&m, 0x2000, 0, true, seg, 4) == 0);
}

TEST_CASE("mem: unaligned reads return the bytes that are there", "[mem]") {
    const guarded_bytes memory(24);
    for (uint8_t i = 0; i < 24; i++)
        memory.data()[i] = i;
    for (size_t i = 0; i <= 16; i++) {
        uint64_t expected;
        std::memcpy(&expected, memory.data() + i, 8);
        CHECK(vql_read_u64(memory.data() + i) == expected);
    }
    uint8_t copy[5] = {};
    vql_read_bytes(copy, memory.data() + 19, 5);
    CHECK(std::memcmp(copy, memory.data() + 19, 5) == 0);
}
