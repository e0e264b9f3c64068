// SPDX-License-Identifier: GPL-2.0-only
// virtio-blk requests, case by case: what is submitted, what is answered, and with what.
#include "ring_memory.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstring>
#include <string>

using namespace vql::test;

namespace {

constexpr uint64_t low = 0x10000, high = 0x18000; // neighbours
const guest_ram& ram() {
    static const guest_ram memory({{low, 0x8000}, {high, 0x8000}, {1ull << 32, 64ull << 20}});
    return memory;
}
constexpr uint64_t big = 1ull << 32; // 64 MiB, for large transfers

// 8 MiB and one block, so that no size limit is met by accident.
vql_blk_disk small_disk() {
    vql_blk_disk d{};
    d.sectors = 16384 + 8;
    d.block_bytes = 512;
    d.discard = d.write_zeroes = d.unmap = true;
    std::memcpy(d.id, "vm1", 3);
    return d;
}

// A chain under construction. Contents go to consecutive addresses from @at on.
struct request {
    test_ring ring{64};
    uint64_t at = low;
    vql_chain chain{};
    vql_io io{};
    vql_blk_answer answer{};

    request& out(const void* bytes, uint32_t len) {
        ram().write(at, bytes, len);
        return range(at, len, 0);
    }
    request& in(uint32_t len) { return range(at, len, VQL_DESC_F_WRITE); }
    request& range(uint64_t guest, uint32_t len, uint16_t flags) {
        if (descs_)
            ring.set_desc(descs_ - 1u, last_.addr, last_.len,
                          static_cast<uint16_t>(last_.flags | VQL_DESC_F_NEXT), descs_);
        last_ = {guest, len, flags, 0};
        ring.set_desc(descs_++, last_);
        if (guest == at)
            at += len;
        return *this;
    }
    request& header(uint32_t type, uint64_t sector) {
        const vql_blk_hdr h = {type, 0xdeadbeef, sector};
        return out(&h, sizeof(h));
    }
    request& payload(uint64_t sector, uint32_t sectors, uint32_t flags) {
        const vql_blk_range r = {sector, sectors, flags};
        return out(&r, sizeof(r));
    }
    int parse(const vql_blk_disk& d = small_disk()) {
        vql_mem m = ram().mem();
        const int err = vql_chain_walk(&ring.ring, &m, 0, &chain);
        if (err)
            FAIL("walk: " << vql_ring_error_text(-err));
        const int verdict = vql_blk_parse(&chain, &d, &io, &answer);
        if (verdict >= 0)
            if (const char* broken = broken_invariant(ram(), d, io, answer, verdict))
                FAIL(broken);
        return verdict;
    }
    uint32_t finish() { return vql_blk_finish(&io, &answer); }
    // The whole life of a request that ends without being executed.
    uint8_t answered_with(const vql_blk_disk& d = small_disk()) {
        const int verdict = parse(d);
        return verdict == VQL_BLK_ANSWERED ? io.status : static_cast<uint8_t>(0xf0 | verdict);
    }

  private:
    uint16_t descs_ = 0;
    vql_desc last_{};
};

constexpr uint8_t submitted = 0xf0 | VQL_BLK_SUBMIT;

} // namespace

TEST_CASE("blk: a header is gathered from every split of its 16 bytes", "[blk]") {
    const vql_blk_hdr h = {VQL_BLK_T_OUT, 0, 0x1234};
    uint8_t bytes[16 + 512];
    std::memcpy(bytes, &h, 16);
    std::memset(bytes + 16, 0xa5, 512);
    // Bit i of @cuts: a descriptor ends behind byte i. Bit 15 clear: the last piece of the header
    // and the first data share a descriptor.
    for (uint32_t cuts = 0; cuts < 1u << 16; cuts++) {
        request r;
        uint32_t from = 0;
        for (uint32_t i = 0; i < 16; i++)
            if (cuts & 1u << i) {
                r.out(bytes + from, i + 1 - from);
                from = i + 1;
            }
        r.out(bytes + from, sizeof(bytes) - from).in(1);
        if (r.parse() != VQL_BLK_SUBMIT || r.io.op != VQL_OP_WRITE || r.io.sector != 0x1234 ||
            r.io.bytes != 512 || r.io.nsegs != 1 || r.io.seg[0].bytes != 512 ||
            r.io.seg[0].base != ram().at(low + 16))
            FAIL("cuts " << cuts);
    }
}

TEST_CASE("blk: a header that straddles two regions is gathered", "[blk]") {
    const vql_blk_hdr h = {VQL_BLK_T_IN, 0, 77};
    for (uint64_t front = 1; front < 16; front++) {
        CAPTURE(front);
        request r;
        r.at = high - front;
        r.out(&h, 16).in(512 + 1);
        REQUIRE(r.parse() == VQL_BLK_SUBMIT);
        CHECK(r.io.sector == 77);
        CHECK(r.io.op == VQL_OP_READ);
    }
}

TEST_CASE("blk: data keeps its segments; empty ones vanish", "[blk]") {
    request r;
    uint8_t sector[512] = {};
    r.header(VQL_BLK_T_OUT, 5).out(sector, 100).out(sector, 0).range(high - 12, 412, 0).in(1);
    REQUIRE(r.parse() == VQL_BLK_SUBMIT);
    REQUIRE(r.io.nsegs == 3);
    CHECK(r.io.seg[0].bytes == 100);
    CHECK(r.io.seg[1].base == ram().at(high - 12));
    CHECK(r.io.seg[1].bytes == 12);
    CHECK(r.io.seg[2].base == ram().at(high));
    CHECK(r.io.seg[2].bytes == 400);
    CHECK(r.io.bytes == 512);
}

TEST_CASE("blk: the status byte is the last writable byte, alone or behind data", "[blk]") {
    SECTION("a descriptor of its own") {
        request r;
        r.header(VQL_BLK_T_IN, 0).range(big, 1024, VQL_DESC_F_WRITE).in(1);
        REQUIRE(r.parse() == VQL_BLK_SUBMIT);
        CHECK(r.io.nsegs == 1);
        CHECK(r.answer.status == ram().at(low + 16));
    }
    SECTION("sharing one with data") {
        request r;
        r.header(VQL_BLK_T_IN, 0).range(big, 1025, VQL_DESC_F_WRITE);
        REQUIRE(r.parse() == VQL_BLK_SUBMIT);
        REQUIRE(r.io.nsegs == 1);
        CHECK(r.io.seg[0].bytes == 1024);
        CHECK(r.answer.status == ram().at(big + 1024));
    }
    SECTION("first byte of the next region") {
        request r;
        r.header(VQL_BLK_T_IN, 0).range(high - 512, 513, VQL_DESC_F_WRITE);
        REQUIRE(r.parse() == VQL_BLK_SUBMIT);
        REQUIRE(r.io.nsegs == 1);
        CHECK(r.io.seg[0].bytes == 512);
        CHECK(r.answer.status == ram().at(high));
    }
    SECTION("behind an empty descriptor's back") {
        request r;
        r.header(VQL_BLK_T_IN, 0).range(big, 513, VQL_DESC_F_WRITE).range(0, 0, VQL_DESC_F_WRITE);
        REQUIRE(r.parse() == VQL_BLK_SUBMIT);
        CHECK(r.answer.status == ram().at(big + 512));
    }
    SECTION("writing it touches nothing else") {
        request r;
        r.header(VQL_BLK_T_IN, 0).range(big, 513, VQL_DESC_F_WRITE);
        std::memset(ram().at(big), 0xee, 514);
        REQUIRE(r.parse() == VQL_BLK_SUBMIT);
        r.io.status = VQL_STATUS_IOERR;
        r.finish();
        CHECK(*ram().at(big + 511) == 0xee);
        CHECK(*ram().at(big + 512) == VQL_STATUS_IOERR);
        CHECK(*ram().at(big + 513) == 0xee);
    }
}

TEST_CASE("blk: without a writable byte there is no answer, and the ring is broken", "[blk]") {
    request r;
    r.header(VQL_BLK_T_FLUSH, 0).range(low, 0, VQL_DESC_F_WRITE);
    CHECK(r.parse() == -VQL_RING_NO_STATUS);
    request empty;
    empty.range(0, 0, 0);
    CHECK(empty.parse() == -VQL_RING_NO_STATUS);
}

TEST_CASE("blk: a request with less than a header is answered with IOERR", "[blk]") {
    const uint8_t zero[16] = {};
    for (uint32_t len = 0; len < 16; len++) {
        CAPTURE(len);
        request r;
        r.out(zero, len).in(513);
        CHECK(r.answered_with() == VQL_STATUS_IOERR);
        CHECK(r.io.op == VQL_OP_OTHER);
        CHECK(r.finish() == 0);
        CHECK(*r.answer.status == VQL_STATUS_IOERR);
    }
    request status_only;
    status_only.in(1);
    CHECK(status_only.answered_with() == VQL_STATUS_IOERR);
    CHECK(status_only.finish() == 1);
}

TEST_CASE("blk: transfers outside the disk are answered with IOERR", "[blk]") {
    const uint32_t type = GENERATE(uint32_t{VQL_BLK_T_IN}, uint32_t{VQL_BLK_T_OUT});
    const auto rw = [&](uint64_t sector, uint32_t bytes) {
        request r;
        r.header(type, sector);
        if (type == VQL_BLK_T_IN)
            r.range(big, bytes, VQL_DESC_F_WRITE);
        else
            r.range(big, bytes, 0);
        r.in(1);
        const uint8_t answer = r.answered_with();
        if (answer != submitted)
            CHECK(r.io.bytes == 0);
        return answer;
    };
    const uint64_t end = small_disk().sectors;
    CHECK(rw(0, 512) == submitted);
    CHECK(rw(end - 1, 512) == submitted);
    CHECK(rw(end - 2, 1024) == submitted);
    CHECK(rw(end, 512) == VQL_STATUS_IOERR);
    CHECK(rw(end - 1, 1024) == VQL_STATUS_IOERR);
    CHECK(rw(UINT64_MAX, 512) == VQL_STATUS_IOERR); // sector + sectors wraps
    CHECK(rw(UINT64_MAX - 1, 1024) == VQL_STATUS_IOERR);
    CHECK(rw(1ull << 55, 512) == VQL_STATUS_IOERR); // sector * 512 wraps
    CHECK(rw(0, 16384 * 512 + 4096) == submitted);  // the whole disk
    CHECK(rw(0, 16384 * 512 + 4096 + 512) == VQL_STATUS_IOERR);
    for (uint32_t odd : {1u, 511u, 513u, 1000u})
        CHECK(rw(0, odd) == VQL_STATUS_IOERR);
    // No data at all is nothing to do, but still has to lie on the disk.
    CHECK(rw(end, 0) == VQL_STATUS_OK);
    CHECK(rw(end + 1, 0) == VQL_STATUS_IOERR);
}

TEST_CASE("blk: transfers above the size limit are answered with IOERR", "[blk]") {
    vql_blk_disk d = small_disk();
    d.sectors = 1ull << 40;
    const uint32_t type = GENERATE(uint32_t{VQL_BLK_T_IN}, uint32_t{VQL_BLK_T_OUT});
    for (uint32_t over : {0u, 512u, 16u << 20}) {
        CAPTURE(over);
        request r;
        r.header(type, 0);
        const auto flags = static_cast<uint16_t>(type == VQL_BLK_T_IN ? VQL_DESC_F_WRITE : 0);
        r.range(big, VQL_MAX_IO_BYTES, flags).range(big + (32 << 20), over, flags).in(1);
        CHECK(r.answered_with(d) == (over ? uint8_t{VQL_STATUS_IOERR} : submitted));
    }
}

TEST_CASE("blk: a disk of 4096-byte blocks takes whole blocks only", "[blk]") {
    vql_blk_disk d = small_disk();
    d.block_bytes = 4096;
    const auto read = [&](uint64_t sector, uint32_t bytes) {
        request r;
        r.header(VQL_BLK_T_IN, sector).range(big, bytes, VQL_DESC_F_WRITE).in(1);
        return r.answered_with(d);
    };
    CHECK(read(0, 4096) == submitted);
    CHECK(read(8, 8192) == submitted);
    CHECK(read(16384, 4096) == submitted);
    for (uint64_t sector : {1ull, 4ull, 7ull})
        CHECK(read(sector, 4096) == VQL_STATUS_IOERR);
    for (uint32_t bytes : {512u, 2048u, 4608u})
        CHECK(read(0, bytes) == VQL_STATUS_IOERR);
    for (uint32_t type : {uint32_t{VQL_BLK_T_DISCARD}, uint32_t{VQL_BLK_T_WRITE_ZEROES}}) {
        request good, sector, length;
        CHECK(good.header(type, 0).payload(8, 8, 0).in(1).answered_with(d) == submitted);
        CHECK(sector.header(type, 0).payload(4, 8, 0).in(1).answered_with(d) == VQL_STATUS_IOERR);
        CHECK(length.header(type, 0).payload(8, 4, 0).in(1).answered_with(d) == VQL_STATUS_IOERR);
    }
}

TEST_CASE("blk: a read-only disk answers every change with IOERR, and serves the rest", "[blk]") {
    vql_blk_disk d = small_disk();
    d.read_only = true;
    const uint8_t sector[512] = {};
    request read, write, nothing, flush, id, discard, zeroes;
    CHECK(read.header(VQL_BLK_T_IN, 0).in(513).answered_with(d) == submitted);
    CHECK(write.header(VQL_BLK_T_OUT, 0).out(sector, 512).in(1).answered_with(d) ==
          VQL_STATUS_IOERR);
    CHECK(nothing.header(VQL_BLK_T_OUT, 0).in(1).answered_with(d) == VQL_STATUS_IOERR);
    CHECK(flush.header(VQL_BLK_T_FLUSH, 0).in(1).answered_with(d) == submitted);
    CHECK(id.header(VQL_BLK_T_GET_ID, 0).in(21).answered_with(d) == VQL_STATUS_OK);
    CHECK(discard.header(VQL_BLK_T_DISCARD, 0).payload(0, 8, 0).in(1).answered_with(d) ==
          VQL_STATUS_IOERR);
    CHECK(zeroes.header(VQL_BLK_T_WRITE_ZEROES, 0).payload(0, 8, 0).in(1).answered_with(d) ==
          VQL_STATUS_IOERR);
}

TEST_CASE("blk: unknown types are answered with UNSUPP", "[blk]") {
    for (uint32_t type = 0; type < 300; type++) {
        if (type == 0 || type == 1 || type == 4 || type == 8 || type == 11 || type == 13)
            continue;
        CAPTURE(type);
        request r;
        REQUIRE(r.header(type, 0).in(513).answered_with() == VQL_STATUS_UNSUPP);
        REQUIRE(r.io.op == VQL_OP_OTHER);
        REQUIRE(r.finish() == 0);
        REQUIRE(*r.answer.status == VQL_STATUS_UNSUPP);
    }
    for (uint32_t type : {0x80000000u, 0x80000001u, 0xffffffffu, 0x100u, 0x10000u}) {
        request r;
        CHECK(r.header(type, 0).in(1).answered_with() == VQL_STATUS_UNSUPP);
    }
}

TEST_CASE("blk: flush is submitted, whatever else its chain holds", "[blk]") {
    const uint8_t extra[100] = {};
    request r;
    REQUIRE(r.header(VQL_BLK_T_FLUSH, 999999).out(extra, 100).in(1).parse() == VQL_BLK_SUBMIT);
    CHECK(r.io.op == VQL_OP_FLUSH);
    CHECK(r.io.sector == 0);
    CHECK(r.io.bytes == 0);
    CHECK(r.io.nsegs == 0);
    CHECK(r.finish() == 1);
    CHECK(*r.answer.status == VQL_STATUS_OK);
}

TEST_CASE("blk: discard and write zeroes take one valid range", "[blk]") {
    const bool zeroes = GENERATE(false, true);
    const uint32_t type = zeroes ? VQL_BLK_T_WRITE_ZEROES : VQL_BLK_T_DISCARD;
    const uint64_t end = small_disk().sectors;
    const auto one = [&](uint64_t sector, uint32_t sectors, uint32_t flags,
                         vql_blk_disk d = small_disk()) {
        request r;
        return r.header(type, 1234).payload(sector, sectors, flags).in(1).answered_with(d);
    };
    CAPTURE(zeroes);
    request r;
    REQUIRE(r.header(type, 1234).payload(16, 32, 0).in(1).parse() == VQL_BLK_SUBMIT);
    CHECK(r.io.op == (zeroes ? VQL_OP_WRITE_ZEROES : VQL_OP_DISCARD));
    CHECK(r.io.sector == 16); // the range's, not the header's
    CHECK(r.io.bytes == 32 * 512);
    CHECK(r.io.flags == 0);
    CHECK(r.io.nsegs == 0);
    CHECK(r.finish() == 1);

    CHECK(one(end - 1, 1, 0) == submitted);
    CHECK(one(end, 1, 0) == VQL_STATUS_IOERR);
    CHECK(one(end - 1, 2, 0) == VQL_STATUS_IOERR);
    CHECK(one(UINT64_MAX, 2, 0) == VQL_STATUS_IOERR);
    CHECK(one(0, 0, 0) == VQL_STATUS_OK);
    CHECK(one(end + 1, 0, 0) == VQL_STATUS_IOERR);

    vql_blk_disk large = small_disk();
    large.sectors = 1ull << 40;
    CHECK(one(0, VQL_MAX_DISCARD_SECTORS, 0, large) == submitted);
    CHECK(one(0, VQL_MAX_DISCARD_SECTORS + 1, 0, large) == VQL_STATUS_IOERR);
    CHECK(one(0, 0xffffffff, 0, large) == VQL_STATUS_IOERR);

    // virtio 1.3 §5.2.6.2: unmap is a flag of write zeroes only; any other flag is unknown.
    CHECK(one(0, 8, VQL_BLK_WRITE_ZEROES_F_UNMAP) ==
          (zeroes ? submitted : uint8_t{VQL_STATUS_UNSUPP}));
    CHECK(one(0, 8, 2) == VQL_STATUS_UNSUPP);
    CHECK(one(0, 8, 0x80000001) == VQL_STATUS_UNSUPP);
    CHECK(one(end, 8, 2) == VQL_STATUS_UNSUPP); // flags come before the range

    vql_blk_disk without = small_disk();
    (zeroes ? without.write_zeroes : without.discard) = false;
    CHECK(one(0, 8, 0, without) == VQL_STATUS_UNSUPP);
}

TEST_CASE("blk: unmap of a write zeroes is passed on", "[blk]") {
    request r;
    r.header(VQL_BLK_T_WRITE_ZEROES, 0).payload(0, 8, VQL_BLK_WRITE_ZEROES_F_UNMAP).in(1);
    REQUIRE(r.parse() == VQL_BLK_SUBMIT);
    CHECK(r.io.flags == VQL_IO_UNMAP);

    // … but not where the disk is to keep its space: there it is a write zeroes like others.
    vql_blk_disk thick = small_disk();
    thick.unmap = false;
    request kept;
    kept.header(VQL_BLK_T_WRITE_ZEROES, 0).payload(0, 8, VQL_BLK_WRITE_ZEROES_F_UNMAP).in(1);
    REQUIRE(kept.parse(thick) == VQL_BLK_SUBMIT);
    CHECK(kept.io.flags == 0);
}

TEST_CASE("blk: payloads of discard and write zeroes that are not one range are refused", "[blk]") {
    const uint32_t type = GENERATE(uint32_t{VQL_BLK_T_DISCARD}, uint32_t{VQL_BLK_T_WRITE_ZEROES});
    const uint8_t zero[64] = {};
    for (uint32_t bytes : {0u, 1u, 15u, 17u, 31u, 33u}) {
        CAPTURE(bytes);
        request r;
        CHECK(r.header(type, 0).out(zero, bytes).in(1).answered_with() == VQL_STATUS_IOERR);
    }
    request two; // more than max_discard_seg and max_write_zeroes_seg, which are 1
    CHECK(two.header(type, 0).payload(0, 8, 0).payload(8, 8, 0).in(1).answered_with() ==
          VQL_STATUS_UNSUPP);
    // Split like any other readable bytes.
    const vql_blk_range range = {24, 8, 0};
    const auto* bytes = reinterpret_cast<const uint8_t*>(&range);
    request split;
    split.header(type, 0).out(bytes, 3).out(bytes + 3, 12).out(bytes + 15, 1).in(1);
    REQUIRE(split.parse() == VQL_BLK_SUBMIT);
    CHECK(split.io.sector == 24);
    CHECK(split.io.bytes == 8 * 512);
}

TEST_CASE("blk: get id writes the id into whatever room there is", "[blk]") {
    vql_blk_disk d = small_disk();
    std::memcpy(d.id, "0123456789abcdefghij", 20); // all 20 bytes: no terminator
    struct {
        uint32_t room, written, used;
    } const cases[] = {{0, 0, 1},    {1, 1, 2},    {7, 7, 8},    {19, 19, 20},
                       {20, 20, 21}, {21, 20, 20}, {512, 20, 20}};
    for (const auto& [room, written, used] : cases) {
        CAPTURE(room);
        request r;
        std::memset(ram().at(low), 0xee, 1024);
        r.header(VQL_BLK_T_GET_ID, 0).in(room).in(1);
        REQUIRE(r.answered_with(d) == VQL_STATUS_OK);
        CHECK(r.io.op == VQL_OP_GET_ID);
        CHECK(r.finish() == used);
        CHECK(std::memcmp(ram().at(low + 16), d.id, written) == 0);
        for (uint32_t i = written; i < room; i++)
            if (*ram().at(low + 16 + i) != 0xee)
                FAIL("byte " << i << " was written");
        CHECK(*ram().at(low + 16 + room) == VQL_STATUS_OK);
    }
    request split; // over descriptors and regions; data of a request for dirty logging's sake
    split.header(VQL_BLK_T_GET_ID, 0).in(3).range(high - 5, 18, VQL_DESC_F_WRITE);
    REQUIRE(split.answered_with(d) == VQL_STATUS_OK);
    uint8_t id[17];
    ram().read(high - 5, id, 17);
    CHECK(std::memcmp(id, d.id + 3, 17) == 0);
    CHECK(split.io.nsegs == 3);
    CHECK(split.answer.status == ram().at(high + 12));
}

TEST_CASE("blk: used.len counts what was written from the first writable byte on", "[blk]") {
    // virtio 1.3 §2.7.8.2: the driver may rely on that many bytes, so fewer is safe and more is
    // not.
    const uint8_t sector[512] = {};
    request read_ok, read_bad, write_ok, write_bad, write_room;
    REQUIRE(read_ok.header(VQL_BLK_T_IN, 0).in(1024).in(1).parse() == VQL_BLK_SUBMIT);
    CHECK(read_ok.finish() == 1025);
    CHECK(*read_ok.answer.status == VQL_STATUS_OK);
    REQUIRE(read_bad.header(VQL_BLK_T_IN, 0).in(1024).in(1).parse() == VQL_BLK_SUBMIT);
    read_bad.io.status = VQL_STATUS_IOERR; // data may be half written: nothing is promised
    CHECK(read_bad.finish() == 0);
    CHECK(*read_bad.answer.status == VQL_STATUS_IOERR);
    REQUIRE(write_ok.header(VQL_BLK_T_OUT, 0).out(sector, 512).in(1).parse() == VQL_BLK_SUBMIT);
    CHECK(write_ok.finish() == 1);
    REQUIRE(write_bad.header(VQL_BLK_T_OUT, 0).out(sector, 512).in(1).parse() == VQL_BLK_SUBMIT);
    write_bad.io.status = VQL_STATUS_IOERR;
    CHECK(write_bad.finish() == 1);
    REQUIRE(write_room.header(VQL_BLK_T_OUT, 0).out(sector, 512).in(9).parse() == VQL_BLK_SUBMIT);
    CHECK(write_room.finish() == 0); // eight writable bytes ahead of the status were not written
    CHECK(*write_room.answer.status == VQL_STATUS_OK);
}

TEST_CASE("blk: a chain with too many segments is answered, not served", "[blk]") {
    const uint32_t type =
        GENERATE(uint32_t{VQL_BLK_T_IN}, uint32_t{VQL_BLK_T_OUT}, uint32_t{VQL_BLK_T_GET_ID});
    test_ring t(1024);
    const vql_blk_hdr h = {type, 0, 0};
    ram().write(low, &h, 16);
    t.set_desc(0, low, 16, VQL_DESC_F_NEXT, 1);
    const auto flags = static_cast<uint16_t>(type == VQL_BLK_T_OUT ? 0 : VQL_DESC_F_WRITE);
    for (uint16_t i = 1; i <= 512; i++) // 512 descriptors of 512 bytes
        t.set_desc(i, big + 1024u * i, 512, static_cast<uint16_t>(flags | VQL_DESC_F_NEXT),
                   static_cast<uint16_t>(i + 1));
    t.set_desc(513, high, 1, VQL_DESC_F_WRITE);
    auto chain = std::make_unique<vql_chain>();
    vql_mem m = ram().mem();
    REQUIRE(vql_chain_walk(&t.ring, &m, 0, chain.get()) == VQL_RING_OK);
    REQUIRE(chain->truncated);
    vql_io io{};
    vql_blk_answer answer{};
    const vql_blk_disk d = small_disk();
    *ram().at(high) = 0xee;
    CHECK(vql_blk_parse(chain.get(), &d, &io, &answer) == VQL_BLK_ANSWERED);
    CHECK(io.status == VQL_STATUS_IOERR);
    CHECK(vql_blk_finish(&io, &answer) == (type == VQL_BLK_T_OUT ? 1 : 0));
    CHECK(*ram().at(high) == VQL_STATUS_IOERR);
}

TEST_CASE("blk: a chain with too many segments for its own array is served from a larger one",
          "[blk]") {
    const bool read = GENERATE(true, false);
    constexpr uint16_t descriptors = 1022;
    test_ring t(1024);
    const vql_blk_hdr h = {read ? VQL_BLK_T_IN : VQL_BLK_T_OUT, 0, 0};
    ram().write(high - 8, &h, 16); // straddling, as all of the data
    t.set_desc(0, high - 8, 16, VQL_DESC_F_NEXT, 1);
    const auto flags = static_cast<uint16_t>((read ? VQL_DESC_F_WRITE : 0) | VQL_DESC_F_NEXT);
    for (uint16_t i = 1; i <= descriptors; i++)
        t.set_desc(i, high - 256, 512, flags, static_cast<uint16_t>(i + 1));
    t.set_desc(descriptors + 1, low, 1, VQL_DESC_F_WRITE);
    auto chain = std::make_unique<vql_chain>();
    std::vector<vql_seg> segs(VQL_MOST_SEGS);
    vql_mem m = ram().mem();
    REQUIRE(vql_chain_walk(&t.ring, &m, 0, chain.get()) == VQL_RING_OK);
    REQUIRE(chain->truncated);
    REQUIRE(vql_chain_walk_into(&t.ring, &m, 0, chain.get(), segs.data(), VQL_MOST_SEGS) ==
            VQL_RING_OK);
    REQUIRE_FALSE(chain->truncated);
    vql_io io{};
    vql_blk_answer answer{};
    vql_blk_disk d = small_disk();
    d.sectors = 1 << 20;
    REQUIRE(vql_blk_parse_segs(chain.get(), segs.data(), &d, &io, &answer) == VQL_BLK_SUBMIT);
    CHECK(io.nsegs == 2u * descriptors);
    CHECK(io.bytes == 512u * descriptors);
    CHECK(io.seg == segs.data() + 2);
    for (uint32_t i = 0; i < io.nsegs; i++)
        REQUIRE(io.seg[i].base == ram().at(i % 2 ? high : high - 256));
    CHECK(answer.status == ram().at(low));
}

TEST_CASE("blk: seg_max data segments fit, each straddling two regions", "[blk]") {
    test_ring t(256);
    const vql_blk_hdr h = {VQL_BLK_T_IN, 0, 0};
    ram().write(high - 8, &h, 16);
    t.set_desc(0, high - 8, 16, VQL_DESC_F_NEXT, 1);
    for (uint16_t i = 1; i <= VQL_SEG_MAX; i++)
        t.set_desc(i, high - 256, 512, VQL_DESC_F_WRITE | VQL_DESC_F_NEXT,
                   static_cast<uint16_t>(i + 1));
    t.set_desc(VQL_SEG_MAX + 1, low, 1, VQL_DESC_F_WRITE);
    auto chain = std::make_unique<vql_chain>();
    vql_mem m = ram().mem();
    REQUIRE(vql_chain_walk(&t.ring, &m, 0, chain.get()) == VQL_RING_OK);
    vql_io io{};
    vql_blk_answer answer{};
    const vql_blk_disk d = small_disk();
    REQUIRE(vql_blk_parse(chain.get(), &d, &io, &answer) == VQL_BLK_SUBMIT);
    CHECK(io.nsegs == 2 * VQL_SEG_MAX);
    CHECK(io.bytes == 512u * VQL_SEG_MAX);
}
