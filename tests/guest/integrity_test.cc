// SPDX-License-Identifier: GPL-2.0-only
// What was written is what is read: on the disk, and in the backing files afterwards.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>

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
                test_guest guest(daemon.device(disk), options);
                run_options run_options;
                run_options.block_bytes = guest.driver.config().blk_size;
                model_run run(guest.driver, model, test_seed(salt++), run_options);
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
    test_guest guest(daemon.device(disk));
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
    test_storage storage(storage_folder());
    storage.add_file("t", disk_bytes);
    if (!takes_direct_io(storage.path("t"))) {
        SKIP("the build folder's file system does not take O_DIRECT");
    }
    test_daemon daemon(storage.targets() + storage.disk("d", "t", "queues = 4\n"));
    std::vector<std::byte> model = run_all_modes(daemon, "d", scaled(4000, 100));
    CHECK(compare_backing(model, {storage.part("t")}) == disk_bytes);
}

TEST_CASE("random concurrent I/O on tmpfs or a drive reads back what was written, in every driver "
          "mode",
          "[integrity]") {
    test_storage storage;
    storage.add("t", disk_bytes);
    test_daemon daemon(storage.targets() + storage.disk("d", "t", "queues = 4\n"));
    std::vector<std::byte> model = run_all_modes(daemon, "d", scaled(4000, 100));
    CHECK(compare_backing(model, {storage.part("t")}) == disk_bytes);
}

// Hidden, since the drive, $VQL_E2E_BDF, is the daemon's alone here: whoever has it afterwards
// compares its first 128 MiB, all zeroes before, with the file $VQL_E2E_IMAGE.
TEST_CASE("random concurrent I/O on a drive, with a queue pair for each CPU, reads back what was "
          "written, and is on the drive, in every driver mode",
          "[.drive]") {
    constexpr uint64_t half = disk_bytes / 2, first = 80 << 20, second = 16 << 20;
    const std::string image = environment("VQL_E2E_IMAGE");
    auto extent = [](uint64_t offset) {
        return "{ target = \"t\", offset = " + std::to_string(offset) +
               ", length = " + std::to_string(half) + " }";
    };
    test_daemon daemon(
        "[daemon]\npollers = [0, 1]\nallow_untranslated_dma = true\n[[target]]\nname = \"t\"\n"
        "type = \"nvme\"\ndevice = \"" +
        environment("VQL_E2E_BDF") + "\"\n" +
        disk_of("d", "extents = [ " + extent(first) + ", " + extent(second) + " ]\nqueues = 4\n"));
    CHECK(daemon.wait_log("2 queue pairs"));
    std::vector<std::byte> model = run_all_modes(daemon, "d", scaled(4000, 100));
    for (const auto& poller : daemon.control().result({{"op", "stats"}}).at("pollers")) {
        CHECK(poller.at("requests") > 0);
    }
    make_file(image, 128 << 20);
    unique_fd file(open(image.c_str(), O_WRONLY | O_CLOEXEC));
    REQUIRE(pwrite(file.get(), model.data(), half, first) == half);
    REQUIRE(pwrite(file.get(), model.data() + half, half, second) == half);
}

TEST_CASE("a disk of shuffled extents of two targets holds each byte where its table says",
          "[integrity]") {
    constexpr uint64_t chunk = 64 << 10;
    constexpr uint64_t target_bytes = 16 << 20;
    test_storage storage;
    storage.add("a", target_bytes);
    storage.add_file("b", target_bytes);

    // All chunks of both targets, in a random order.
    struct place {
        const char* target;
        uint64_t offset;
    };
    random_source random(test_seed(100));
    std::vector<place> chunks;
    for (uint64_t at = 0; at < target_bytes; at += chunk) {
        chunks.push_back({"a", at});
        chunks.push_back({"b", at});
    }
    random.shuffle(std::span(chunks));
    const size_t used = chunks.size() / 2 + random.below(chunks.size() / 2);
    std::string list;
    std::vector<backing_extent> extents;
    for (const place& at : std::span(chunks).first(used)) {
        list += (list.empty() ? "" : ", ") + storage.extent(at.target, at.offset, chunk);
        extents.push_back(storage.part(at.target, at.offset, chunk));
    }
    const uint64_t bytes = used * chunk;
    test_daemon daemon(storage.targets() +
                       disk_of("d", "queues = 2\nextents = [ " + list + " ]\n"));
    std::vector<std::byte> model(bytes);
    guest_options options;
    options.slots = 8;
    options.memory_bytes = 96 << 20;
    options.blk.queues = 2;
    options.blk.depth = 16;
    test_guest guest(daemon.device("d"), options);
    REQUIRE(guest.driver.capacity() == bytes / sector_bytes);
    run_options run_options;
    run_options.max_bytes = 512 << 10; // crosses several chunks
    model_run run(guest.driver, model, test_seed(101), run_options);
    run.run(scaled(10000, 200));
    CHECK(compare_backing(model, extents) == bytes);

    // What is not in the disk's table was not written.
    std::vector<std::byte> zeroes(chunk);
    for (const place& at : std::span(chunks).subspan(used)) {
        CHECK(compare_backing(zeroes, {storage.part(at.target, at.offset, chunk)}) == chunk);
    }
}

TEST_CASE("a request may reach across parts of a target that touch", "[integrity]") {
    constexpr uint64_t chunk = 64 << 10;
    test_storage storage;
    storage.add("t", 8 * chunk);
    std::string list;
    for (uint64_t i = 0; i < 8; i++) {
        list += (i ? ", " : "") + storage.extent("t", i * chunk, chunk);
    }
    test_daemon daemon(storage.targets() + disk_of("d", "extents = [ " + list + " ]\n"));
    test_guest guest(daemon.device("d"));
    std::vector<std::byte> model(8 * chunk);
    random_source random(test_seed(102));
    random.fill(model);
    REQUIRE(guest.driver.write(0, model).status == blk_ok);
    std::vector<std::byte> back(3 * chunk);
    REQUIRE(guest.driver.read(chunk / 2 / sector_bytes, back).status == blk_ok);
    CHECK(std::equal(back.begin(), back.end(), model.begin() + chunk / 2));
    CHECK(compare_backing(model, {storage.part("t", 0, 8 * chunk)}) == 8 * chunk);
}

TEST_CASE("requests of up to 16 MiB, aligned and not, read back what was written", "[integrity]") {
    constexpr uint64_t bytes = 64 << 20;
    test_storage storage(storage_folder());
    storage.add("t", bytes);
    test_daemon daemon(storage.targets() + storage.disk("d", "t"));
    std::vector<std::byte> model(bytes);
    guest_options options;
    options.slots = 6;
    options.memory_bytes = 96 << 20;
    options.blk.depth = 3;
    test_guest guest(daemon.device("d"), options);
    run_options run_options;
    run_options.max_bytes = 16 << 20;
    run_options.max_discard_bytes = 32 << 20;
    model_run run(guest.driver, model, test_seed(110), run_options);
    run.run(scaled(150, 20));
    CHECK(compare_backing(model, {storage.part("t")}) == bytes);

    // The largest of all, which the random choice may have left out.
    std::vector<std::byte> largest(16 << 20);
    random_source(test_seed(111)).fill(largest);
    REQUIRE(guest.driver.write(8, largest).status == blk_ok);
    std::vector<std::byte> back(largest.size());
    REQUIRE(guest.driver.read(8, back).status == blk_ok);
    CHECK(back == largest);
}

TEST_CASE("rings of 2, 16 and 1024 entries carry verified I/O", "[integrity]") {
    constexpr uint64_t bytes = 16 << 20;
    test_storage storage;
    storage.add("t", bytes);
    test_daemon daemon(storage.targets() + storage.disk("d", "t", "queue_size = 1024\n"));
    std::vector<std::byte> model(bytes);
    for (uint16_t size : {uint16_t{2}, uint16_t{16}, uint16_t{1024}}) {
        INFO("queue size " << size);
        guest_options options;
        options.memory_bytes = 192 << 20;
        options.blk.queue_size = size;
        options.blk.depth = std::min<unsigned>(size, 128);
        test_guest guest(daemon.device("d"), options);
        run_options run_options;
        run_options.max_bytes = 32 << 10;
        // Two descriptors are too few for a chain, so there it is indirect tables only.
        run_options.indirect_percent = size == 2 ? 100 : 50;
        model_run run(guest.driver, model, test_seed(120 + size), run_options);
        run.run(scaled(6000, 100));
        guest.driver.stop();
    }
    CHECK(compare_backing(model, {storage.part("t")}) == bytes);
}

TEST_CASE("rings with direct descriptors only, and a driver that takes no optional feature, work",
          "[integrity]") {
    constexpr uint64_t bytes = 8 << 20;
    test_storage storage;
    storage.add("t", bytes);
    test_daemon daemon(storage.targets() + storage.disk("d", "t"));
    std::vector<std::byte> model(bytes);
    guest_options options;
    options.blk.indirect = false;
    options.blk.event_idx = false;
    options.blk.depth = 16;
    options.blk.features = bit(feature_version_1);
    options.vhost.protocol_features = bit(vu_feature_mq) | bit(vu_feature_config);
    test_guest guest(daemon.device("d"), options);
    run_options run_options;
    run_options.discard = run_options.write_zeroes = false; // not negotiated
    model_run run(guest.driver, model, test_seed(130), run_options);
    run.run(scaled(5000, 100));
    CHECK(compare_backing(model, {storage.part("t")}) == bytes);
}

TEST_CASE("DISCARD gives the file's space back, WRITE ZEROES with unmap may", "[integrity]") {
    constexpr uint64_t bytes = 8 << 20;
    test_storage storage(storage_folder());
    storage.add_file("t", bytes);
    const std::string path = storage.path("t");
    test_daemon daemon(storage.targets() + storage.disk("d", "t"));
    test_guest guest(daemon.device("d"));
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

TEST_CASE("a disk with discard = false keeps all of its file's space", "[integrity]") {
    constexpr uint64_t bytes = 8 << 20;
    test_storage storage(storage_folder());
    storage.add_file("t", bytes);
    const std::string path = storage.path("t");
    test_daemon daemon(storage.targets() + storage.disk("d", "t", "discard = false\n"));
    test_guest guest(daemon.device("d"));
    CHECK((guest.driver.features() & bit(feature_discard)) == 0);
    CHECK((guest.driver.features() & bit(feature_write_zeroes)) != 0);
    CHECK(guest.driver.config().max_discard_sectors == 0);
    CHECK(guest.driver.config().write_zeroes_may_unmap == 0);
    std::vector<std::byte> data(bytes);
    random_source(test_seed(141)).fill(data);
    REQUIRE(guest.driver.write(0, data).status == blk_ok);
    REQUIRE(guest.driver.flush().status == blk_ok);
    // A driver that asks all the same.
    CHECK(guest.driver.discard({0, 2048, 0}).status == blk_unsupp);
    CHECK(guest.driver.write_zeroes({2048, 4096, range_unmap}).status == blk_ok);
    REQUIRE(guest.driver.flush().status == blk_ok);
    std::vector<std::byte> back(bytes);
    REQUIRE(guest.driver.read(0, back).status == blk_ok);
    std::fill(data.begin() + (1 << 20), data.begin() + (3 << 20), std::byte{0});
    CHECK(back == data);
    struct stat info {};
    REQUIRE(stat(path.c_str(), &info) == 0);
    CHECK(static_cast<uint64_t>(info.st_blocks) * 512 >= bytes);
}

} // namespace vql::guest
