// SPDX-License-Identifier: GPL-2.0-only
// How many segments a request may have: what the driver is told, and what is served all the same.
#include "e2e.h"
#include "model_run.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstring>

namespace vql::guest {
namespace {

// Read or write of @data in @pieces segments of the same length, which lie apart, last to first.
uint8_t transfer(test_guest& guest, blk_op op, uint64_t sector, std::span<std::byte> data,
                 unsigned pieces, bool indirect) {
    const auto bytes = static_cast<uint32_t>(data.size() / pieces);
    const uint64_t stride = bytes + 64;
    const uint64_t gpa = guest.memory->allocate(stride * pieces, 4096);
    const auto place = [&](unsigned i) { return gpa + stride * (pieces - 1 - i); };
    blk_request& r = *guest.driver.acquire(0);
    guest.driver.shape(r, op, sector, 0, 0);
    r.indirect = indirect;
    r.segments = 0;
    r.chain[r.segments++] = {r.header_gpa, sizeof(blk_header), false};
    for (unsigned i = 0; i < pieces; i++) {
        if (op == blk_op::write) {
            std::memcpy(guest.memory->at(place(i)), data.data() + uint64_t{i} * bytes, bytes);
        }
        r.chain[r.segments++] = {place(i), bytes, op == blk_op::read};
    }
    r.chain[r.segments++] = {r.status_gpa, 1, true};
    r.data_in = op == blk_op::read ? bytes * pieces : 0;
    const uint8_t status = guest.driver.execute(r).status;
    for (unsigned i = 0; i < pieces && op == blk_op::read; i++) {
        std::memcpy(data.data() + uint64_t{i} * bytes, guest.memory->at(place(i)), bytes);
    }
    guest.memory->free(gpa, stride * pieces);
    return status;
}

void write_and_read_back(test_guest& guest, uint32_t piece_bytes, unsigned pieces, bool indirect) {
    INFO(pieces << " segments of " << piece_bytes << " bytes");
    std::vector<std::byte> data(uint64_t{pieces} * piece_bytes), back(data.size());
    random_source(test_seed(150 + pieces)).fill(data);
    REQUIRE(transfer(guest, blk_op::write, 8, data, pieces, indirect) == blk_ok);
    REQUIRE(transfer(guest, blk_op::read, 8, back, pieces, indirect) == blk_ok);
    CHECK(back == data);
}

} // namespace

TEST_CASE("a driver without indirect descriptors is told no more segments than its ring holds",
          "[segments]") {
    test_storage storage;
    storage.add("small", 16 << 20);
    storage.add("large", 16 << 20);
    test_daemon daemon(storage.targets() + storage.disk("small", "small", "queue_size = 16\n") +
                       storage.disk("large", "large", "queue_size = 1024\n"));
    for (const char* disk : {"small", "large"}) {
        INFO(disk);
        guest_options options;
        options.blk.indirect = false;
        options.blk.queue_size = 16;
        options.blk.depth = 1;
        test_guest guest(daemon.device(disk), options);
        // What a device of the module says comes before it knows the ring.
        if (vdpa_world() && disk == std::string("large")) {
            CHECK(guest.driver.config().seg_max == 126);
            continue;
        }
        REQUIRE(guest.driver.config().seg_max == 14);
        write_and_read_back(guest, 4096, guest.driver.config().seg_max, false);
    }
}

TEST_CASE("requests of as many segments as a ring or a table holds are served", "[segments]") {
    test_storage storage(storage_folder());
    storage.add("t", 32 << 20);
    test_daemon daemon(storage.targets() + storage.disk("d", "t", "queue_size = 1024\n"));
    const bool indirect = GENERATE(true, false);
    guest_options options;
    options.blk.queue_size = 1024;
    options.blk.depth = 1;
    options.blk.indirect = indirect;
    options.blk.max_indirect = max_segments;
    test_guest guest(daemon.device("d"), options);
    CHECK(guest.driver.config().seg_max == 126);
    // Windows' driver sends up to 515; two of a ring's descriptors are header and status.
    for (const unsigned pieces : {126u, 254u, 255u, 515u, 1000u, 1022u}) {
        write_and_read_back(guest, 4096, pieces, indirect);
        write_and_read_back(guest, 512, pieces, indirect);
    }
    write_and_read_back(guest, 64, 1000, indirect); // none of them a block
    write_and_read_back(guest, 16 << 10, 1022, indirect);
}

TEST_CASE("random requests of up to a thousand segments read back what was written",
          "[segments][integrity]") {
    constexpr uint64_t bytes = 32 << 20;
    test_storage storage(storage_folder());
    storage.add("t", bytes);
    test_daemon daemon(storage.targets() + storage.disk("d", "t"));
    std::vector<std::byte> model(bytes);
    guest_options options;
    options.slots = 3;
    options.memory_bytes = 126 << 20; // 3 slots of whole pages
    options.blk.queue_size = 1024;
    options.blk.depth = 8;
    options.blk.max_indirect = max_segments;
    test_guest guest(daemon.device("d"), options);
    run_options run_options;
    run_options.max_bytes = 1 << 20;
    run_options.layout.max_pieces = 1000;
    run_options.layout.max_descriptors = max_segments;
    model_run run(guest.driver, model, test_seed(160), run_options);
    run.run(scaled(600, 40));
    CHECK(compare_backing(model, {storage.part("t")}) == bytes);
}

} // namespace vql::guest
