// SPDX-License-Identifier: GPL-2.0-only
// The chain walk of vring.h, case by case. Publishing and notifying: vring_notify_test.cc.
#include "ring_memory.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstring>
#include <string>

using namespace vql::test;

namespace {

constexpr uint16_t next = VQL_DESC_F_NEXT, writable = VQL_DESC_F_WRITE,
                   indirect = VQL_DESC_F_INDIRECT;

// Two neighbours that are one in the guest, a gap of a page, and one more.
constexpr uint64_t low = 0x10000, high = 0x18000, far = 0x21000;
const guest_ram& ram() {
    static const guest_ram memory({{low, 0x8000}, {high, 0x8000}, {far, 0x8000}});
    return memory;
}

struct walked {
    int err;
    vql_chain chain;
};

walked walk(const test_ring& t, const guest_ram& memory = ram(), uint16_t head = 0) {
    auto result = std::make_unique<walked>();
    std::memset(&result->chain, 0xee, sizeof(result->chain)); // the walk writes what it returns
    vql_mem m = memory.mem();
    result->err = vql_chain_walk(&t.ring, &m, head, &result->chain);
    return *result;
}

// An indirect table of @entries at @guest, and descriptor 0 of the ring that refers to it.
void set_table(test_ring& t, uint64_t guest, const std::vector<vql_desc>& entries) {
    const auto bytes = static_cast<uint32_t>(entries.size() * sizeof(vql_desc));
    ram().write(guest, entries.data(), bytes);
    t.set_desc(0, guest, bytes, indirect);
}

} // namespace

TEST_CASE("vring: a chain's segments come in its order, readable ones first", "[vring]") {
    test_ring t(8);
    t.set_desc(5, low, 16, next, 2);
    t.set_desc(2, far, 512, next, 7);
    t.set_desc(7, low + 0x100, 1024, next | writable, 0);
    t.set_desc(0, low + 0x800, 1, writable, 3); // next means nothing without the flag
    const auto [err, c] = walk(t, ram(), 5);
    REQUIRE(err == VQL_RING_OK);
    CHECK(c.nout == 2);
    CHECK(c.nin == 2);
    CHECK(c.out_bytes == 528);
    CHECK(c.in_bytes == 1025);
    CHECK_FALSE(c.truncated);
    CHECK(c.seg[0].base == ram().at(low));
    CHECK(c.seg[1].base == ram().at(far));
    CHECK(c.seg[2].base == ram().at(low + 0x100));
    CHECK(c.seg[2].bytes == 1024);
    CHECK(c.last_in == ram().at(low + 0x800));
    CHECK(broken_invariant(ram(), c) == nullptr);
}

TEST_CASE("vring: loops end, in the ring and in an indirect table", "[vring]") {
    for (uint16_t num : u16s{2, 8, 1024}) {
        CAPTURE(num);
        test_ring t(num);
        t.set_desc(0, low, 1, next, 0); // its own successor
        CHECK(walk(t).err == -VQL_RING_LOOP);
        for (uint16_t i = 0; i < num; i++) // once round, and on
            t.set_desc(i, low, 1, next, static_cast<uint16_t>((i + 1) % num));
        CHECK(walk(t).err == -VQL_RING_LOOP);
        t.set_desc(num - 1u, low, 1, 0); // a chain of the whole ring is legal
        CHECK(walk(t).err == VQL_RING_OK);
    }
    test_ring t(2);
    set_table(t, far, {{low, 1, next, 1}, {low, 1, next, 0}});
    CHECK(walk(t).err == -VQL_RING_LOOP);
    set_table(t, far, {{low, 1, next, 0}});
    CHECK(walk(t).err == -VQL_RING_LOOP);
    // Zero-length descriptors make no segments; they must not make a loop endless either.
    set_table(t, far, {{low, 0, next, 1}, {low, 0, next, 0}});
    CHECK(walk(t).err == -VQL_RING_LOOP);
}

TEST_CASE("vring: a head or next outside its table is refused", "[vring]") {
    test_ring t(4);
    for (uint16_t bad : u16s{4, 5, 1024, 0x8000, 0xffff}) {
        CAPTURE(bad);
        CHECK(walk(t, ram(), bad).err == -VQL_RING_BAD_HEAD);
        t.set_desc(0, low, 1, next, bad);
        CHECK(walk(t).err == -VQL_RING_BAD_HEAD);
    }
    for (uint16_t bad :
         u16s{3, 4, 0xffff}) { // smaller than the ring, but outside the indirect table
        set_table(t, far, {{low, 1, next, 1}, {low, 1, next, bad}, {low, 1, 0, 0}});
        CHECK(walk(t).err == -VQL_RING_BAD_HEAD);
    }
}

TEST_CASE("vring: an indirect table is walked, also behind direct descriptors", "[vring]") {
    const uint16_t ignored =
        GENERATE(uint16_t{0}, writable); // §2.7.5.3.2: the device ignores WRITE
    test_ring t(4);
    set_table(t, far + 8, {{low, 16, next, 2}, {0, 0, 0, 0}, {low + 16, 513, writable, 0}});
    t.set_desc(0, far + 8, 48, static_cast<uint16_t>(indirect | ignored));
    walked w = walk(t);
    REQUIRE(w.err == VQL_RING_OK);
    CHECK(w.chain.nout == 1);
    CHECK(w.chain.nin == 1);
    CHECK(w.chain.last_in == ram().at(low + 16 + 512));

    t.set_desc(1, high, 16, next, 3);
    t.set_desc(3, high + 16, 512, next, 0);
    w = walk(t, ram(), 1);
    REQUIRE(w.err == VQL_RING_OK);
    CHECK(w.chain.nout == 3);
    CHECK(w.chain.out_bytes == 544);
    CHECK(w.chain.in_bytes == 513);
}

TEST_CASE("vring: bad indirect descriptors are refused", "[vring]") {
    test_ring t(4);
    const std::vector<vql_desc> good = {{low, 16, next, 1}, {low, 1, writable, 0}};
    set_table(t, far, good);
    REQUIRE(walk(t).err == VQL_RING_OK);

    SECTION("not negotiated") {
        t.ring.indirect = false;
        CHECK(walk(t).err == -VQL_RING_BAD_INDIRECT);
    }
    SECTION("nested") {
        set_table(t, far, {{low, 16, next, 1}, {low, 16, indirect, 0}});
        CHECK(walk(t).err == -VQL_RING_BAD_INDIRECT);
    }
    SECTION("chained on") {
        t.set_desc(0, far, 32, indirect | next, 1);
        CHECK(walk(t).err == -VQL_RING_BAD_INDIRECT);
    }
    SECTION("sizes that are no whole number of entries, or none") {
        for (uint32_t bytes : {0u, 1u, 15u, 17u, 31u, 33u, 0xffffffffu}) {
            CAPTURE(bytes);
            t.set_desc(0, far, bytes, indirect);
            CHECK(walk(t).err == -VQL_RING_BAD_INDIRECT);
        }
    }
    SECTION("more entries than any chain may have") {
        t.set_desc(0, far, 16 * (VQL_MAX_CHAIN + 1), indirect);
        CHECK(walk(t).err == -VQL_RING_BAD_INDIRECT);
        t.set_desc(0, far, 16 * VQL_MAX_CHAIN, indirect);
        CHECK(walk(t).err == VQL_RING_OK);
    }
    SECTION("outside guest memory, wholly or from the second entry on") {
        for (uint64_t at : {uint64_t{0}, far - 0x1000, far - 16, far + 0x8000 - 16, UINT64_MAX - 15,
                            UINT64_MAX - 7, uint64_t{1} << 63}) {
            CAPTURE(at);
            t.set_desc(0, at, 32, indirect);
            if (ram().at(at))
                ram().write(at, good.data(), 16);
            CHECK(walk(t).err == -VQL_RING_BAD_ADDRESS);
        }
    }
}

TEST_CASE("vring: an indirect table that wraps at 2^64 is refused", "[vring]") {
    const uint64_t top = UINT64_MAX - 0xfff;
    const guest_ram memory({{0, 0x1000}, {top, 0x1000}});
    const vql_desc entry = {0x100, 16, next, 1};
    memory.write(UINT64_MAX - 15, &entry, 16);
    test_ring t(2);
    t.set_desc(0, UINT64_MAX - 15, 32, indirect);
    CHECK(walk(t, memory).err == -VQL_RING_BAD_ADDRESS);
    const vql_desc last = {0x100, 16, 0, 0};
    memory.write(UINT64_MAX - 15, &last, 16);
    t.set_desc(0, UINT64_MAX - 15, 16, indirect); // up to the last byte there is
    CHECK(walk(t, memory).err == VQL_RING_OK);
}

TEST_CASE("vring: an indirect entry that straddles two regions is read whole", "[vring]") {
    for (uint64_t front = 1; front < 16; front++) {
        CAPTURE(front);
        test_ring t(2);
        set_table(t, high - front, {{far + 0x123, 0x456, next, 1}, {low, 7, writable, 0}});
        const auto [err, c] = walk(t);
        REQUIRE(err == VQL_RING_OK);
        CHECK(c.seg[0].base == ram().at(far + 0x123));
        CHECK(c.seg[0].bytes == 0x456);
        CHECK(c.last_in == ram().at(low + 6));
    }
    // Into the gap behind high: no entry.
    test_ring t(2);
    t.set_desc(0, high + 0x8000 - 8, 16, indirect);
    CHECK(walk(t).err == -VQL_RING_BAD_ADDRESS);
}

TEST_CASE("vring: readable after writable is refused", "[vring]") {
    test_ring t(4);
    t.set_desc(0, low, 16, next, 1);
    t.set_desc(1, low, 16, next | writable, 2);
    t.set_desc(2, low, 16, next, 3);
    t.set_desc(3, low, 1, writable);
    CHECK(walk(t).err == -VQL_RING_BAD_ORDER);
    set_table(t, far, {{low, 1, writable | next, 1}, {low, 1, 0, 0}});
    CHECK(walk(t).err == -VQL_RING_BAD_ORDER);
    t.set_desc(1, low, 1, next | writable,
               0); // writable in the ring, readable in the table behind it
    CHECK(walk(t, ram(), 1).err == -VQL_RING_BAD_ORDER);
}

TEST_CASE("vring: addresses outside guest memory are refused", "[vring]") {
    test_ring t(2);
    struct range {
        uint64_t addr;
        uint32_t len;
    };
    const std::vector<range> bad = {
        {0, 1},
        {low - 1, 1},
        {low - 1, 2},
        {high + 0x8000, 1},
        {high + 0x7fff, 2},      // straddles into the gap
        {low, 0x10001},          // two regions and one byte of the gap
        {high + 0x7fff, 0x1002}, // both ends are memory, the gap between is not
        {far + 0x7fff, 2},
        {UINT64_MAX, 1},
        {UINT64_MAX, 2},              // wraps at 2^64
        {UINT64_MAX - 0xff, 0x100},   // ends at 2^64
        {UINT64_MAX - 0xff, 0x20000}, // wraps, and its end is memory
        {low, 0xffffffff},
    };
    for (const range& r : bad) {
        for (uint16_t flags : {uint16_t{0}, writable}) {
            CAPTURE(r.addr, r.len, flags);
            t.set_desc(0, r.addr, r.len, flags);
            CHECK(walk(t).err == -VQL_RING_BAD_ADDRESS);
        }
    }
}

TEST_CASE("vring: read-only memory is read, and what would write there is refused", "[vring]") {
    // Between two that are writable, and their neighbour.
    const guest_ram memory(
        {{0x1000, 0x1000}, {0x2000, 0x1000, VQL_MEM_READ_ONLY}, {0x3000, 0x1000}});
    test_ring t(4);
    SECTION("readable descriptors, and a table, may be there") {
        const vql_desc entries[] = {{0x2000, 0x800, next, 1}, {0x3000, 1, writable, 0}};
        memory.write(0x2f00, entries, sizeof(entries));
        t.set_desc(0, 0x2f00, sizeof(entries), indirect);
        const auto [err, c] = walk(t, memory);
        REQUIRE(err == VQL_RING_OK);
        CHECK(c.seg[0].base == memory.at(0x2000));
        CHECK(c.last_in == memory.at(0x3000));
    }
    SECTION("writable ones may not, not even with a byte") {
        const std::vector<std::pair<uint64_t, uint32_t>> ranges = {
            {0x2000, 1}, {0x2fff, 1}, {0x1fff, 2}, {0x2fff, 2}, {0x1000, 0x3000}};
        for (const auto& [addr, len] : ranges) {
            CAPTURE(addr, len);
            t.set_desc(0, addr, len, writable);
            CHECK(walk(t, memory).err == -VQL_RING_BAD_ADDRESS);
            t.set_desc(0, addr, len, 0);
            CHECK(walk(t, memory).err == VQL_RING_OK);
        }
    }
    SECTION("nor the byte to answer in, of a chain with more segments than are kept") {
        constexpr uint16_t entries = VQL_MAX_SEGS + 2;
        test_ring many(512);
        for (uint16_t i = 0; i < entries; i++)
            many.set_desc(i, 0x1000, 1, next | writable, static_cast<uint16_t>(i + 1));
        many.set_desc(entries, 0x2000, 1, writable);
        CHECK(walk(many, memory).err == -VQL_RING_BAD_ADDRESS);
        many.set_desc(entries, 0x1fff, 2, writable);
        CHECK(walk(many, memory).err == -VQL_RING_BAD_ADDRESS);
        many.set_desc(entries, 0x3000, 1, writable);
        CHECK(walk(many, memory).err == VQL_RING_OK);
    }
}

TEST_CASE("vring: a range over two adjacent regions becomes two segments", "[vring]") {
    test_ring t(2);
    t.set_desc(0, high - 10, 16, next, 1);
    t.set_desc(1, high - 0x200, 0x601, writable);
    walked w = walk(t);
    REQUIRE(w.err == VQL_RING_OK);
    const vql_chain& c = w.chain;
    REQUIRE(c.nout == 2);
    REQUIRE(c.nin == 2);
    CHECK(c.seg[0].base == ram().at(high - 10));
    CHECK(c.seg[0].bytes == 10);
    CHECK(c.seg[1].base == ram().at(high));
    CHECK(c.seg[1].bytes == 6);
    CHECK(c.seg[2].bytes == 0x200);
    CHECK(c.seg[3].bytes == 0x401);
    CHECK(c.last_in == ram().at(high + 0x400));
    t.set_desc(0, low, 0x10000, 0); // both regions, whole
    w = walk(t);
    REQUIRE(w.err == VQL_RING_OK);
    CHECK(w.chain.nout == 2);
}

TEST_CASE("vring: a chain longer than 4 GiB is refused", "[vring]") {
    const guest_ram big({{0, 6ull << 30}}, PROT_NONE); // only addresses: the walk touches no data
    test_ring t(4);
    t.set_desc(0, 0, 0xffffffff, 0);
    CHECK(walk(t, big).err == VQL_RING_OK);
    t.set_desc(0, 0, 0xffffffff, next, 1);
    t.set_desc(1, 0, 1, 0);
    CHECK(walk(t, big).err == -VQL_RING_BAD_LENGTH);
    t.set_desc(1, 0, 1, writable); // readable and writable bytes count together
    CHECK(walk(t, big).err == -VQL_RING_BAD_LENGTH);
    t.set_desc(0, 0, 0x80000000, next, 1);
    t.set_desc(1, 0, 0x7fffffff, writable);
    CHECK(walk(t, big).err == VQL_RING_OK);
    t.set_desc(1, 0, 0x80000000, writable);
    CHECK(walk(t, big).err == -VQL_RING_BAD_LENGTH);
    t.set_desc(0, 0, 0x80000000, next | writable, 1);
    CHECK(walk(t, big).err == -VQL_RING_BAD_LENGTH);
}

TEST_CASE("vring: zero-length descriptors hold nothing, wherever they point", "[vring]") {
    test_ring t(8);
    t.set_desc(0, low, 16, next, 1);
    t.set_desc(1, UINT64_MAX, 0, next, 2);
    t.set_desc(2, 0, 0, next | writable, 3);
    t.set_desc(3, low, 1, next | writable, 4);
    t.set_desc(4, 0, 0, writable);
    const auto [err, c] = walk(t);
    REQUIRE(err == VQL_RING_OK);
    CHECK(c.nout == 1);
    CHECK(c.nin == 1);
    CHECK(c.last_in == ram().at(low));
    CHECK(broken_invariant(ram(), c) == nullptr);
}

TEST_CASE("vring: a chain without a writable byte walks, and has no place for an answer",
          "[vring]") {
    test_ring t(2);
    t.set_desc(0, low, 16, next, 1);
    t.set_desc(1, low, 0, writable);
    const auto [err, c] = walk(t);
    REQUIRE(err == VQL_RING_OK);
    CHECK(c.in_bytes == 0);
    CHECK(c.last_in == nullptr);
}

TEST_CASE("vring: a chain with too many segments keeps its last writable byte", "[vring]") {
    const uint16_t readable = GENERATE(uint16_t{1}, uint16_t{200}, uint16_t{256}, uint16_t{700});
    test_ring t(1024);
    for (uint16_t i = 0; i < 1024; i++)
        t.set_desc(i, low + i, 2, static_cast<uint16_t>(i < readable ? next : next | writable),
                   static_cast<uint16_t>(i + 1));
    t.set_desc(1023, far + 5, 3, writable);
    walked w = walk(t);
    CAPTURE(readable);
    REQUIRE(w.err == VQL_RING_OK);
    CHECK(w.chain.truncated);
    CHECK(w.chain.nout + w.chain.nin == VQL_MAX_SEGS);
    CHECK(w.chain.out_bytes == 2u * readable);
    CHECK(w.chain.in_bytes == 2u * (1023 - readable) + 3);
    CHECK(w.chain.last_in == ram().at(far + 7));
    CHECK(broken_invariant(ram(), w.chain) == nullptr);

    t.set_desc(1023, high - 2, 3, writable); // the last one straddles
    CHECK(walk(t).chain.last_in == ram().at(high));
    t.set_desc(1023, high + 0x7fff, 2,
               writable); // what is left out must lie in memory all the same
    CHECK(walk(t).err == -VQL_RING_BAD_ADDRESS);
    t.set_desc(1023, 0, 1, writable);
    CHECK(walk(t).err == -VQL_RING_BAD_ADDRESS);
}

TEST_CASE("vring: exactly as many segments as there is room for are not too many", "[vring]") {
    test_ring t(512);
    for (uint16_t i = 0; i < VQL_MAX_SEGS; i++)
        t.set_desc(i, low, 1, next, static_cast<uint16_t>(i + 1));
    t.set_desc(VQL_MAX_SEGS - 1, low, 1, writable);
    walked w = walk(t);
    REQUIRE(w.err == VQL_RING_OK);
    CHECK_FALSE(w.chain.truncated);
    CHECK(w.chain.nout + w.chain.nin == VQL_MAX_SEGS);
    t.set_desc(VQL_MAX_SEGS - 1, high - 1, 2, writable); // one more, by straddling
    t.set_desc(VQL_MAX_SEGS, low + 9, 1, writable);
    w = walk(t);
    REQUIRE(w.err == VQL_RING_OK);
    CHECK(w.chain.truncated);
    CHECK(w.chain.last_in == ram().at(high));
    CHECK(broken_invariant(ram(), w.chain) == nullptr);
    // What is left out is left out whole, and so is all that follows: no gap in the middle.
    t.set_desc(VQL_MAX_SEGS - 1, high - 1, 2, next | writable, VQL_MAX_SEGS);
    w = walk(t);
    REQUIRE(w.err == VQL_RING_OK);
    CHECK(w.chain.nout + w.chain.nin == VQL_MAX_SEGS - 1);
    CHECK(w.chain.last_in == ram().at(low + 9));
}

TEST_CASE("vring: every error has a text of its own", "[vring]") {
    std::vector<std::string> seen;
    for (int e = 0; e < VQL_RING_ERRORS; e++) {
        const std::string text = vql_ring_error_text(e);
        CHECK(text != "unknown error");
        CHECK(std::find(seen.begin(), seen.end(), text) == seen.end());
        seen.push_back(text);
    }
    CHECK(std::string(vql_ring_error_text(VQL_RING_ERRORS)) == "unknown error");
}

TEST_CASE("vring: queue sizes are powers of two within limits", "[vring]") {
    for (uint32_t n = 0; n <= 70000; n++) {
        const bool valid = n == 2 || n == 4 || n == 8 || n == 16 || n == 32 || n == 64 ||
                           n == 128 || n == 256 || n == 512 || n == 1024;
        if (vql_queue_size_valid(n) != valid)
            FAIL("queue size " << n);
    }
    CHECK(vql_desc_bytes(256) == 4096);
    CHECK(vql_avail_bytes(256) == 518);
    CHECK(vql_used_bytes(256) == 2054);
}
