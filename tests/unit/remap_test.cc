// SPDX-License-Identifier: GPL-2.0-only
#include "extent_tables.h"

#include <catch2/catch_test_macros.hpp>
#include <optional>

using namespace vql::test;

namespace {

// The extent table as its definition reads, with divisions and one sector at a time in mind.
class naive_table {
  public:
    naive_table(const std::vector<__u64>& words, uint32_t shift)
        : words_(words), chunk_sectors_((1ull << shift) / 512) {}

    struct place {
        uint64_t target, chunk, sector;
    };
    uint64_t word(uint64_t sector) const {
        const uint64_t index = sector / chunk_sectors_;
        return index < words_.size() ? words_[index] : 0;
    }
    uint32_t verdict(uint64_t sector) const {
        switch (word(sector) >> 60) {
        case 1: return VQL_SERVE;
        case 2: return VQL_USER;
        default: return VQL_REFUSE;
        }
    }
    // Where a mapped sector is.
    place at(uint64_t sector) const {
        const uint64_t w = word(sector), chunk = w % (1ull << 48);
        return {(w >> 48) % 4096, chunk, chunk * chunk_sectors_ + sector % chunk_sectors_};
    }
    // How many sectors from @sector on are consecutive on one target, @sectors at most. Looked up
    // at chunk edges only: within a chunk nothing changes.
    uint64_t contiguous(uint64_t sector, uint64_t sectors) const {
        uint64_t n = std::min(sectors, chunk_sectors_ - sector % chunk_sectors_);
        if (verdict(sector) != VQL_SERVE)
            return n;
        const place first = at(sector);
        constexpr unsigned most = 257; // chunks of 64 KiB that 16 MiB can touch
        for (unsigned chunks = 1; n < sectors && chunks < most; chunks++) {
            const uint64_t next = sector + n;
            if (verdict(next) != VQL_SERVE || at(next).target != first.target ||
                at(next).chunk != first.chunk + chunks)
                break;
            n += std::min(sectors - n, chunk_sectors_);
        }
        return n;
    }

  private:
    const std::vector<__u64>& words_;
    uint64_t chunk_sectors_;
};

vql_remap look(const std::vector<__u64>& words, uint32_t shift, uint64_t sector, uint64_t sectors) {
    const vql_extent_table table = {words.data(), words.size(), shift};
    return vql_remap_lookup(&table, vql_extent_table_at, vql_extent_table_run, shift, sector,
                            sectors);
}

uint64_t mapped(uint32_t target, uint64_t chunk) {
    return vql_extent_word(VQL_EXTENT_MAPPED, target, chunk);
}

} // namespace

TEST_CASE("remap: a word holds state, target and chunk in the bits that are documented",
          "[remap]") {
    CHECK(vql_extent_word(VQL_EXTENT_HOLE, 0, 0) == 0);
    CHECK(mapped(0, 0) == 1ull << 60);
    CHECK(vql_extent_word(VQL_EXTENT_MOVING, 0, 0) == 2ull << 60);
    CHECK(mapped(0xabc, 0x123456789abc) == 0x1abc123456789abc);
    for (uint32_t target : {0u, 1u, 0x800u, 0xfffu})
        for (uint64_t chunk : {0ull, 1ull, 1ull << 47, (1ull << 48) - 1}) {
            const uint64_t w = vql_extent_word(VQL_EXTENT_MOVING, target, chunk);
            CHECK(vql_extent_state(w) == VQL_EXTENT_MOVING);
            CHECK(vql_extent_target(w) == target);
            CHECK(vql_extent_chunk(w) == chunk);
        }
    // What does not fit is cut off, never spilled into another field.
    CHECK(mapped(0xfffff001, 0) == mapped(1, 0));
    CHECK(mapped(0, 1ull << 48) == mapped(0, 0));
}

TEST_CASE("remap: neighbours merge while they are neighbours on the target", "[remap]") {
    constexpr uint32_t shift = 16; // 128 sectors
    const std::vector<__u64> words = {mapped(3, 10), mapped(3, 11), mapped(3, 12),
                                      mapped(3, 14), mapped(4, 15), mapped(4, 15)};
    vql_remap r = look(words, shift, 100, 200);
    CHECK(r.verdict == VQL_SERVE);
    CHECK(r.target == 3);
    CHECK(r.sector == 10 * 128 + 100);
    CHECK(r.sectors == 200); // 28 + 128 + 44
    r = look(words, shift, 100, 1000);
    CHECK(r.sectors == 3 * 128 - 100); // 14 is no neighbour of 12
    r = look(words, shift, 3 * 128, 1000);
    CHECK(r.sector == 14 * 128);
    CHECK(r.sectors == 128); // 15, but of another target
    r = look(words, shift, 4 * 128, 1000);
    CHECK(r.target == 4);
    CHECK(r.sectors == 128); // the same chunk twice is no neighbour
    CHECK(look(words, shift, 127, 1).sectors == 1);
    CHECK(look(words, shift, 127, 2).sectors == 2);
}

TEST_CASE("remap: holes are refused, moving chunks are left to the daemon, up to their edge",
          "[remap]") {
    constexpr uint32_t shift = 16;
    const std::vector<__u64> words = {mapped(1, 7), 0, vql_extent_word(VQL_EXTENT_MOVING, 1, 9),
                                      mapped(1, 10), 15ull << 60 | mapped(1, 11)};
    CHECK(look(words, shift, 0, 1000).verdict == VQL_SERVE);
    CHECK(look(words, shift, 0, 1000).sectors == 128); // up to the hole
    CHECK(look(words, shift, 130, 1000).verdict == VQL_REFUSE);
    CHECK(look(words, shift, 130, 1000).sectors == 126); // what lies behind is asked for again
    CHECK(look(words, shift, 256, 1000).verdict == VQL_USER);
    CHECK(look(words, shift, 256, 1000).sectors == 128);
    CHECK(look(words, shift, 256, 5).sectors == 5);
    CHECK(look(words, shift, 384, 1000).sectors == 128);
    CHECK(look(words, shift, 512, 1).verdict == VQL_REFUSE); // a state from the future
    CHECK(look(words, shift, 640, 1).verdict == VQL_REFUSE); // beyond the table
    CHECK(look(words, shift, UINT64_MAX, 1).verdict == VQL_REFUSE);
    CHECK(look({}, shift, 0, 1).verdict == VQL_REFUSE);
}

TEST_CASE("remap: a merge ends with the fields, it does not run into the next one", "[remap]") {
    constexpr uint32_t shift = 16;
    const uint64_t last = VQL_EXTENT_CHUNK_MASK;
    // The word after (target 5, last chunk) is (target 6, chunk 0); after target 4095, MOVING.
    CHECK(look({mapped(5, last), mapped(6, 0)}, shift, 0, 256).sectors == 128);
    const vql_remap r = look({mapped(4095, last), 2ull << 60}, shift, 0, 256);
    CHECK(r.verdict == VQL_SERVE);
    CHECK(r.sectors == 128);
}

TEST_CASE("remap: a transfer of the largest size merges over the smallest chunks", "[remap]") {
    constexpr uint64_t sectors = VQL_MAX_IO_BYTES / 512;
    std::vector<__u64> words;
    for (uint64_t i = 0; i < 400; i++)
        words.push_back(mapped(0, 1000 + i));
    for (uint64_t sector : {0u, 1u, 64u, 127u}) {
        CAPTURE(sector);
        CHECK(look(words, 16, sector, sectors).sectors == sectors);
    }
    // A longer one gets an answer of bounded length, and asks again.
    CHECK(look(words, 16, 0, 400 * 128).sectors == 257 * 128);
}

TEST_CASE("remap: any lookup agrees with the naive model, for all chunk sizes", "[remap]") {
    random_source random(30);
    for (uint32_t shift = VQL_MIN_CHUNK_SHIFT; shift <= VQL_MAX_CHUNK_SHIFT; shift++) {
        for (int tables = 0; tables < 12; tables++) {
            std::vector<__u64> words(random.one_in(4) ? random.between(1, 4) : 700);
            fill_extents(random, words.data(), words.size());
            const naive_table model(words, shift);
            for (int i = 0; i < 400; i++) {
                const lookup l = random_lookup(random, shift, words.size());
                const vql_remap r = look(words, shift, l.sector, l.sectors);
                const bool serve = model.verdict(l.sector) == VQL_SERVE;
                const bool same = r.verdict == model.verdict(l.sector) &&
                                  r.sectors == model.contiguous(l.sector, l.sectors) &&
                                  (!serve || (r.target == model.at(l.sector).target &&
                                              r.sector == model.at(l.sector).sector));
                if (!same)
                    FAIL("seed " << run_seed() << ", shift " << shift << ", sector " << l.sector
                                 << ", sectors " << l.sectors);
            }
        }
    }
}

TEST_CASE("remap: asking again for the rest covers a request exactly", "[remap]") {
    random_source random(31);
    for (int i = 0; i < 2000; i++) {
        const auto shift =
            static_cast<uint32_t>(random.between(VQL_MIN_CHUNK_SHIFT, VQL_MAX_CHUNK_SHIFT));
        std::vector<__u64> words(300);
        fill_extents(random, words.data(), words.size());
        const lookup l = random_lookup(random, shift, words.size());
        const uint64_t end = l.sector + std::min<uint64_t>(l.sectors, VQL_MAX_DISCARD_SECTORS);
        unsigned asked = 0;
        for (uint64_t at = l.sector; at < end; asked++) {
            const vql_remap r = look(words, shift, at, end - at);
            if (!r.sectors || r.sectors > end - at)
                FAIL("seed " << run_seed() << ": " << r.sectors << " of " << end - at);
            at += r.sectors;
        }
        // Each answer ends the request, a chunk, or a run: never more answers than chunks touched.
        if (asked > (uint32_t{VQL_MAX_DISCARD_SECTORS} >> (shift - VQL_SECTOR_SHIFT)) + 2)
            FAIL("seed " << run_seed() << ": asked " << asked << " times");
    }
}
