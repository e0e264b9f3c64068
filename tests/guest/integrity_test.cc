// SPDX-License-Identifier: GPL-2.0-only
// What was written is what is read: on the disk, and in the backing files afterwards.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <fcntl.h>
#include <sys/stat.h>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 48 << 20;

bool takes_direct_io(const std::string& path) {
    return bool(unique_fd(open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC)));
}

// Every way for the driver to run, one after the other on one disk, whose content stays.
// Returns that content.
std::vector<std::byte> run_all_modes(test_daemon& daemon, const std::string& disk,
                                     uint64_t operations) {
    std::vector<std::byte> model(disk_bytes);
    uint64_t salt = 0;
    for (unsigned queues : {1u, 4u}) {
        for (bool event_idx : {false, true}) {
            for (bool interrupts : {false, true}) {
                INFO("queues " << queues << ", EVENT_IDX " << event_idx << ", interrupts "
                               << interrupts);
                guest_options options;
                options.slots = 16; // buffers straddle them
                options.memory_base = salt % 2 == 0 ? 0 : uint64_t{5} << 30;
                options.memory_bytes = 96 << 20;
                options.blk.queues = queues;
                options.blk.depth = 16;
                options.blk.event_idx = event_idx;
                options.blk.interrupts = interrupts;
                options.blk.first_index = static_cast<uint16_t>(65500 + salt);
                options.vhost.slots_one_by_one = salt % 3 == 0;
                test_guest guest(daemon.socket(disk), options);
                model_run run(guest.driver, model, test_seed(salt++));
                run.expect_id(disk);
                run.run(operations);
                REQUIRE(run.counts().total() == operations);
                CHECK(run.counts().read.count > 0);
                CHECK(run.counts().write.count > 0);
                CHECK(run.counts().discard.count + run.counts().write_zeroes.count > 0);
                guest.driver.stop();
            }
        }
    }
    std::vector<std::byte> whole(disk_bytes);
    test_guest guest(daemon.socket(disk));
    for (uint64_t at = 0; at < disk_bytes; at += 1 << 20) {
        REQUIRE(
            guest.driver.read(at / sector_bytes, std::span(whole).subspan(at, 1 << 20)).status ==
            blk_ok);
    }
    CHECK(whole == model);
    return model;
}

} // namespace

TEST_CASE("random concurrent I/O on a file with O_DIRECT reads back what was written, in every "
          "driver mode",
          "[integrity]") {
    temporary_directory on_disk(built_program("."));
    std::string path = on_disk / "image";
    make_file(path, disk_bytes);
    if (!takes_direct_io(path)) {
        SKIP("the build folder's file system does not take O_DIRECT");
    }
    test_daemon daemon(file_target("t", path) + disk_on("d", "t", "queues = 4\n"));
    std::vector<std::byte> model = run_all_modes(daemon, "d", scaled(4000, 100));
    CHECK(compare_backing(model, {{path, 0, disk_bytes}}) == disk_bytes);
}

TEST_CASE("random concurrent I/O on tmpfs reads back what was written, in every driver mode",
          "[integrity]") {
    temporary_directory in_memory("/dev/shm");
    std::string path = in_memory / "image";
    make_file(path, disk_bytes);
    test_daemon daemon(file_target("t", path) + disk_on("d", "t", "queues = 4\n"));
    std::vector<std::byte> model = run_all_modes(daemon, "d", scaled(4000, 100));
    CHECK(compare_backing(model, {{path, 0, disk_bytes}}) == disk_bytes);
}

TEST_CASE("a disk of shuffled extents of two targets holds each byte where its table says",
          "[integrity]") {
    temporary_directory files("/dev/shm");
    constexpr uint64_t chunk = 64 << 10;
    constexpr uint64_t target_bytes = 16 << 20;
    std::string path[2] = {files / "a", files / "b"};
    make_file(path[0], target_bytes);
    make_file(path[1], target_bytes);

    // All chunks of both targets, in a random order, and neighbours joined where they happen to be.
    random_source random(test_seed(100));
    std::vector<backing_extent> extents;
    for (uint64_t at = 0; at < target_bytes; at += chunk) {
        extents.push_back({path[0], at, chunk});
        extents.push_back({path[1], at, chunk});
    }
    for (size_t i = extents.size(); i > 1; i--) {
        std::swap(extents[i - 1], extents[random.below(i)]);
    }
    extents.resize(extents.size() / 2 + random.below(extents.size() / 2));
    std::string list;
    uint64_t bytes = 0;
    for (const backing_extent& extent : extents) {
        list += std::string(list.empty() ? "" : ", ") + "{ target = \"" +
                (extent.path == path[0] ? "a" : "b") +
                "\", offset = " + std::to_string(extent.offset) +
                ", length = " + std::to_string(extent.bytes) + " }";
        bytes += extent.bytes;
    }
    test_daemon daemon(file_target("a", path[0]) + file_target("b", path[1]) +
                       "[[disk]]\nname = \"d\"\nqueues = 2\nextents = [ " + list + " ]\n");
    std::vector<std::byte> model(bytes);
    guest_options options;
    options.slots = 8;
    options.memory_bytes = 96 << 20;
    options.blk.queues = 2;
    options.blk.depth = 16;
    test_guest guest(daemon.socket("d"), options);
    REQUIRE(guest.driver.capacity() == bytes / sector_bytes);
    run_options run_options;
    run_options.max_bytes = 512 << 10; // crosses several chunks
    model_run run(guest.driver, model, test_seed(101), run_options);
    run.run(scaled(10000, 200));
    CHECK(compare_backing(model, extents) == bytes);

    // What is not in the disk's table was not written.
    std::vector<bool> used(2 * target_bytes / chunk);
    for (const backing_extent& extent : extents) {
        used[(extent.path == path[0] ? 0 : target_bytes / chunk) + extent.offset / chunk] = true;
    }
    std::vector<std::byte> zeroes(chunk);
    for (size_t i = 0; i < used.size(); i++) {
        if (!used[i]) {
            uint64_t at = i * chunk;
            bool in_a = at < target_bytes;
            CHECK(compare_backing(zeroes, {{path[in_a ? 0 : 1], in_a ? at : at - target_bytes,
                                            chunk}}) == chunk);
        }
    }
}

TEST_CASE("requests of up to 16 MiB, aligned and not, read back what was written", "[integrity]") {
    temporary_directory files(built_program("."));
    constexpr uint64_t bytes = 64 << 20;
    make_file(files / "image", bytes);
    test_daemon daemon(file_target("t", files / "image") + disk_on("d", "t"));
    std::vector<std::byte> model(bytes);
    guest_options options;
    options.slots = 6;
    options.memory_bytes = 96 << 20;
    options.blk.depth = 3;
    test_guest guest(daemon.socket("d"), options);
    run_options run_options;
    run_options.max_bytes = 16 << 20;
    run_options.max_discard_bytes = 32 << 20;
    model_run run(guest.driver, model, test_seed(110), run_options);
    run.run(scaled(150, 20));
    CHECK(compare_backing(model, {{files / "image", 0, bytes}}) == bytes);

    // The largest of all, which the random choice may have left out.
    std::vector<std::byte> largest(16 << 20);
    random_source(test_seed(111)).fill(largest);
    REQUIRE(guest.driver.write(8, largest).status == blk_ok);
    std::vector<std::byte> back(largest.size());
    REQUIRE(guest.driver.read(8, back).status == blk_ok);
    CHECK(back == largest);
}

TEST_CASE("rings of 2, 16 and 1024 entries carry verified I/O", "[integrity]") {
    temporary_directory files("/dev/shm");
    constexpr uint64_t bytes = 16 << 20;
    make_file(files / "image", bytes);
    test_daemon daemon(file_target("t", files / "image") +
                       disk_on("d", "t", "queue_size = 1024\n"));
    std::vector<std::byte> model(bytes);
    for (uint16_t size : {uint16_t{2}, uint16_t{16}, uint16_t{1024}}) {
        INFO("queue size " << size);
        guest_options options;
        options.memory_bytes = 192 << 20;
        options.blk.queue_size = size;
        options.blk.depth = std::min<unsigned>(size, 128);
        test_guest guest(daemon.socket("d"), options);
        run_options run_options;
        run_options.max_bytes = 32 << 10;
        // Two descriptors are too few for a chain, so there it is indirect tables only.
        run_options.indirect_percent = size == 2 ? 100 : 50;
        model_run run(guest.driver, model, test_seed(120 + size), run_options);
        run.run(scaled(6000, 100));
        guest.driver.stop();
    }
    CHECK(compare_backing(model, {{files / "image", 0, bytes}}) == bytes);
}

TEST_CASE("rings with direct descriptors only, and a driver that takes no optional feature, work",
          "[integrity]") {
    temporary_directory files("/dev/shm");
    constexpr uint64_t bytes = 8 << 20;
    make_file(files / "image", bytes);
    test_daemon daemon(file_target("t", files / "image") + disk_on("d", "t"));
    std::vector<std::byte> model(bytes);
    guest_options options;
    options.blk.indirect = false;
    options.blk.event_idx = false;
    options.blk.depth = 16;
    options.blk.features = bit(feature_version_1);
    options.vhost.protocol_features = bit(vu_feature_mq) | bit(vu_feature_config);
    test_guest guest(daemon.socket("d"), options);
    run_options run_options;
    run_options.discard = run_options.write_zeroes = false; // not negotiated
    model_run run(guest.driver, model, test_seed(130), run_options);
    run.run(scaled(5000, 100));
    CHECK(compare_backing(model, {{files / "image", 0, bytes}}) == bytes);
}

TEST_CASE("DISCARD gives the file's space back, WRITE ZEROES with unmap may", "[integrity]") {
    temporary_directory files(built_program("."));
    constexpr uint64_t bytes = 8 << 20;
    std::string path = files / "image";
    make_file(path, bytes);
    test_daemon daemon(file_target("t", path) + disk_on("d", "t"));
    test_guest guest(daemon.socket("d"));
    std::vector<std::byte> data(bytes);
    random_source(test_seed(140)).fill(data);
    REQUIRE(guest.driver.write(0, data).status == blk_ok);
    REQUIRE(guest.driver.flush().status == blk_ok);
    auto allocated = [&path] {
        struct stat info {};
        REQUIRE(stat(path.c_str(), &info) == 0);
        return static_cast<uint64_t>(info.st_blocks) * 512;
    };
    uint64_t full = allocated();
    CHECK(full >= bytes);
    CHECK(guest.driver.write_zeroes({0, 2048, 0}).status == blk_ok);
    // Without unmap the blocks stay allocated (virtio 1.3 §5.2.6.2).
    CHECK(allocated() >= bytes);
    CHECK(guest.driver.discard({2048, (4 << 20) / 512, 0}).status == blk_ok);
    CHECK(allocated() <= full - (4 << 20));
    std::vector<std::byte> back(bytes);
    REQUIRE(guest.driver.read(0, back).status == blk_ok);
    std::fill(data.begin(), data.begin() + (5 << 20), std::byte{0});
    CHECK(back == data);
}

} // namespace vql::guest
