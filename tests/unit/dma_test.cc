// SPDX-License-Identifier: GPL-2.0-only
// Addresses here → DMA addresses, by regions and their tables.
#include "engine/dma.h"
#include "ring_memory.h"

#include <catch2/catch_test_macros.hpp>

using namespace vql;

namespace {

constexpr uint64_t page = 4096;

vql_region region(uint64_t guest, uint8_t* host, uint64_t pages) {
    vql_region r{};
    r.guest = guest;
    r.bytes = pages * page;
    r.host = host;
    return r;
}

} // namespace

TEST_CASE("dma: each region has its part of the table, wherever it is mapped here") {
    const test::guarded_bytes memory(16 * page, page);
    uint8_t* const at = memory.data();
    // In the order of guest addresses, as the tables are; here in another order, with gaps.
    const std::vector<vql_region> regions = {region(0, at + 8 * page, 2),
                                             region(0x10000, at + 2 * page, 3),
                                             region(0x20000, at + 12 * page, 4)};
    const std::vector<uint64_t> table = {0xa000,       0xb000, 0x3000, 0x1'0000'0000, 0x7000,
                                         dma_unmapped, 0x9000, 0x4000, 0x5000};
    const dma_view view = make_dma_view(regions, table.data());
    CHECK(view.regions().size() == 3);
    for (int pass = 0; pass < 2; pass++) { // whatever was asked for before
        uint64_t index = 0;
        for (const vql_region& r : regions)
            for (uint64_t i = 0; i < r.bytes / page; i++, index++)
                for (uint64_t offset : {uint64_t{0}, uint64_t{1}, page - 1})
                    CHECK(view.at(r.host + i * page + offset) ==
                          (table[index] == dma_unmapped ? dma_unmapped : table[index] + offset));
        for (uint64_t outside : {0, 1, 5, 7, 10, 11})
            for (uint64_t offset : {uint64_t{0}, page - 1})
                CHECK(view.at(at + outside * page + offset) == dma_unmapped);
        CHECK(view.at(at + 16 * page) == dma_unmapped);
        CHECK(view.at(at - 1) == dma_unmapped);
    }
}

TEST_CASE("dma: regions that are neighbours here and in the table are one") {
    const test::guarded_bytes memory(6 * page, page);
    uint8_t* const at = memory.data();
    const std::vector<uint64_t> table = {0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000};
    const dma_view one = make_dma_view(
        {region(0, at, 2), region(0x10000, at + 2 * page, 1), region(0x20000, at + 3 * page, 3)},
        table.data());
    CHECK(one.regions().size() == 1);
    CHECK(one.at(at + 5 * page + 7) == 0x6007);

    // Neighbours here alone are not.
    const dma_view two =
        make_dma_view({region(0, at + 2 * page, 2), region(0x10000, at, 2)}, table.data());
    CHECK(two.regions().size() == 2);
    CHECK(two.at(at) == 0x3000);
    CHECK(two.at(at + 2 * page) == 0x1000);

    // Nor are neighbours in the table alone.
    const dma_view gap =
        make_dma_view({region(0, at, 2), region(0x10000, at + 3 * page, 2)}, table.data());
    CHECK(gap.regions().size() == 2);
    CHECK(gap.at(at + 2 * page) == dma_unmapped);
    CHECK(gap.at(at + 3 * page) == 0x3000);
}

TEST_CASE("dma: in a view of nothing, nothing is mapped") {
    const uint8_t byte = 0;
    CHECK(dma_view().at(&byte) == dma_unmapped);
    CHECK(dma_view().at(nullptr) == dma_unmapped);
}
