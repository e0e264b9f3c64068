// SPDX-License-Identifier: GPL-2.0-only
// A request that cannot be served is answered as virtio says; the config space and the features
// tell the driver what can.
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstring>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 64 << 20;
constexpr uint64_t disk_sectors = disk_bytes / sector_bytes;

// A raw request: any type, any payload, any room for data.
struct odd_request {
    const char* what;
    uint32_t type;
    uint64_t sector;
    uint32_t out_bytes;
    uint32_t in_bytes;
    uint8_t status;
};

blk_result execute(test_guest& guest, const odd_request& odd, std::span<const std::byte> out = {}) {
    blk_driver& driver = guest.driver;
    blk_request* request = driver.acquire(0);
    uint64_t gpa = guest.memory->allocate(odd.out_bytes + odd.in_bytes + 1, 512);
    std::memset(guest.memory->at(gpa), 0, odd.out_bytes);
    std::copy(out.begin(), out.end(), guest.memory->at(gpa));
    driver.shape(*request, blk_op::flush, odd.sector, 0, 0);
    request->type = odd.type;
    guest.memory->as<blk_header>(request->header_gpa)->type = odd.type;
    request->segments = 0;
    request->chain[request->segments++] = {request->header_gpa, sizeof(blk_header), false};
    if (odd.out_bytes != 0) {
        request->chain[request->segments++] = {gpa, odd.out_bytes, false};
    }
    if (odd.in_bytes != 0) {
        request->chain[request->segments++] = {gpa + odd.out_bytes, odd.in_bytes, true};
    }
    request->chain[request->segments++] = {request->status_gpa, 1, true};
    request->data_in = odd.in_bytes;
    blk_result result = driver.execute(*request);
    guest.memory->free(gpa, odd.out_bytes + odd.in_bytes + 1);
    return result;
}

template <typename T>
T config_field(test_guest& guest, uint32_t offset) {
    T value;
    guest.device.read_config(offset, std::as_writable_bytes(std::span(&value, 1)));
    return value;
}

struct status_daemon {
    test_storage storage;
    test_daemon daemon;
    status_daemon() : daemon(configuration()) {}
    std::string configuration() {
        storage.add("t", disk_bytes);
        storage.add("u", disk_bytes);
        return storage.targets() + storage.disk("rw", "t", "queues = 4\nqueue_size = 512\n") +
               storage.disk("ro", "u", "read_only = true\n");
    }
};

} // namespace

// blk_driver::poll() checks used.len of each answer here, too.
TEST_CASE("each bad request gets the status that virtio defines, and the queue goes on",
          "[status]") {
    status_daemon setup;
    guest_options options;
    options.memory_bytes = 96 << 20;
    test_guest guest(setup.daemon.device("rw"), options);
    constexpr uint32_t read = 0, write = 1;
    const odd_request table[] = {
        {"read at the end", read, disk_sectors, 0, 512, blk_ioerr},
        {"read across the end", read, disk_sectors - 1, 0, 1024, blk_ioerr},
        {"read at the largest sector", read, ~uint64_t{0}, 0, 512, blk_ioerr},
        {"read where bytes overflow", read, uint64_t{1} << 55, 0, 512, blk_ioerr},
        {"read where sectors overflow", read, ~uint64_t{0} - 1, 0, 2048, blk_ioerr},
        {"read of no whole sector", read, 0, 0, 100, blk_ioerr},
        {"read of one byte too many", read, 0, 0, 513, blk_ioerr},
        {"read of more than 16 MiB", read, 0, 0, (16 << 20) + 512, blk_ioerr},
        {"write at the end", write, disk_sectors, 512, 0, blk_ioerr},
        {"write across the end", write, disk_sectors - 1, 1024, 0, blk_ioerr},
        {"write at the largest sector", write, ~uint64_t{0}, 512, 0, blk_ioerr},
        {"write where bytes overflow", write, uint64_t{1} << 55, 512, 0, blk_ioerr},
        {"write of no whole sector", write, 0, 511, 0, blk_ioerr},
        {"write of more than 16 MiB", write, 0, (16 << 20) + 512, 0, blk_ioerr},
        {"SCSI command", 2, 0, 0, 0, blk_unsupp},
        {"unknown type with data to read", 5, 0, 0, 512, blk_unsupp},
        {"unknown type with data to write", 7, 0, 512, 0, blk_unsupp},
        {"legacy barrier flag", 0x80000000, 0, 0, 512, blk_unsupp},
        {"secure erase, not offered", 14, 0, 16, 0, blk_unsupp},
        {"discard without a range", 11, 0, 0, 0, blk_ioerr},
        {"discard with half a range", 11, 0, 8, 0, blk_ioerr},
        {"discard with a range and a half", 11, 0, 24, 0, blk_ioerr},
        {"write zeroes without a range", 13, 0, 0, 0, blk_ioerr},
    };
    std::vector<std::byte> before(1 << 20);
    random_source(test_seed(200)).fill(before);
    REQUIRE(guest.driver.write(0, before).status == blk_ok);
    for (const odd_request& odd : table) {
        INFO(odd.what);
        CHECK(execute(guest, odd).status == odd.status);
    }

    constexpr uint32_t discard = 11, zeroes = 13;
    struct {
        const char* what;
        uint32_t type;
        blk_range range;
        uint8_t status;
    } const ranges[] = {
        {"discard at the end", discard, {disk_sectors, 8, 0}, blk_ioerr},
        {"discard across the end", discard, {disk_sectors - 4, 8, 0}, blk_ioerr},
        {"discard that overflows", discard, {~uint64_t{0} - 3, 8, 0}, blk_ioerr},
        {"discard with the unmap flag", discard, {0, 8, 1}, blk_unsupp},
        {"discard with an unknown flag", discard, {0, 8, 2}, blk_unsupp},
        {"discard of the most that can be said", discard, {0, ~uint32_t{0}, 0}, blk_ioerr},
        {"write zeroes at the end", zeroes, {disk_sectors, 8, 0}, blk_ioerr},
        {"write zeroes across the end", zeroes, {disk_sectors - 1, 2, 1}, blk_ioerr},
        {"write zeroes with an unknown flag", zeroes, {0, 8, 2}, blk_unsupp},
        {"write zeroes with all flags", zeroes, {0, 8, ~uint32_t{0}}, blk_unsupp},
        {"write zeroes of the most that can be said", zeroes, {0, ~uint32_t{0}, 0}, blk_ioerr},
    };
    for (const auto& odd : ranges) {
        INFO(odd.what);
        CHECK(execute(guest, {odd.what, odd.type, 0, 16, 0, odd.status}, bytes_of(odd.range))
                  .status == odd.status);
    }
    // Two ranges: max_discard_seg and max_write_zeroes_seg are 1.
    blk_range two[2] = {{0, 8, 0}, {16, 8, 0}};
    CHECK(execute(guest, {"", discard, 0, 32, 0, 0}, bytes_of(two)).status != blk_ok);
    CHECK(execute(guest, {"", zeroes, 0, 32, 0, 0}, bytes_of(two)).status != blk_ok);

    std::vector<std::byte> after(before.size());
    REQUIRE(guest.driver.read(0, after).status == blk_ok);
    CHECK(after == before);
}

TEST_CASE("a header shorter than 16 bytes is answered with an error", "[status]") {
    status_daemon setup;
    test_guest guest(setup.daemon.device("rw"));
    for (uint32_t bytes : {1u, 8u, 15u}) {
        blk_request* request = guest.driver.acquire(0);
        guest.driver.shape(*request, blk_op::flush, 0, 0, 0);
        request->chain[0].bytes = bytes;
        CHECK(guest.driver.execute(*request).status == blk_ioerr);
    }
    blk_request* request = guest.driver.acquire(0);
    guest.driver.shape(*request, blk_op::flush, 0, 0, 0);
    request->chain[0] = request->chain[1]; // no header at all
    request->segments = 1;
    CHECK(guest.driver.execute(*request).status == blk_ioerr);
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("a read-only disk reads, and refuses everything that would change it", "[status]") {
    status_daemon setup;
    test_guest guest(setup.daemon.device("ro"));
    CHECK((guest.driver.features() & bit(feature_ro)) != 0);
    std::vector<std::byte> data(4096, std::byte{1});
    CHECK(guest.driver.write(0, data).status == blk_ioerr);
    CHECK(guest.driver.discard({0, 8, 0}).status != blk_ok);
    CHECK(guest.driver.write_zeroes({0, 8, 0}).status != blk_ok);
    CHECK(guest.driver.flush().status == blk_ok);
    CHECK(guest.driver.read(0, data).status == blk_ok);
    CHECK(data == std::vector<std::byte>(4096));
    CHECK(compare_backing(std::vector<std::byte>(disk_bytes), {setup.storage.part("u")}) ==
          disk_bytes);
    std::string id;
    CHECK(guest.driver.get_id(id).status == blk_ok);
    CHECK(id == "ro");
}

TEST_CASE("an operation whose feature was not negotiated is not done", "[status]") {
    status_daemon setup;
    guest_options options;
    options.blk.features = ~(bit(feature_discard) | bit(feature_write_zeroes));
    test_guest guest(setup.daemon.device("rw"), options);
    CHECK(guest.driver.discard({0, 8, 0}).status == blk_unsupp);
    CHECK(guest.driver.write_zeroes({0, 8, 0}).status == blk_unsupp);
}

TEST_CASE("the config space tells the disk's geometry and limits", "[config]") {
    status_daemon setup;
    guest_options options;
    options.blk.queues = 4;
    test_guest guest(setup.daemon.device("rw"), options);
    blk_config config = guest.driver.config();
    CHECK(config.capacity == disk_sectors);
    CHECK(config.seg_max == 126);
    CHECK(config.blk_size == 512);
    CHECK(config.num_queues == 4);
    CHECK(guest.device.max_queues() == 4);
    CHECK(config.writeback == 1);
    CHECK(config.max_discard_seg == 1);
    CHECK(config.max_discard_sectors > 0);
    CHECK(config.discard_sector_alignment > 0);
    CHECK(config.max_write_zeroes_seg == 1);
    CHECK(config.max_write_zeroes_sectors > 0);
    CHECK(config.write_zeroes_may_unmap <= 1);
    CHECK(config.size_max == 0); // SIZE_MAX is not offered

    // Any part of it alone is the same.
    CHECK(config_field<uint64_t>(guest, 0) == disk_sectors);
    CHECK(config_field<uint32_t>(guest, offsetof(blk_config, blk_size)) == 512);
    CHECK(config_field<uint16_t>(guest, offsetof(blk_config, num_queues)) == 4);
    CHECK(config_field<uint8_t>(guest, offsetof(blk_config, writeback)) == 1);

    test_guest other(setup.daemon.device("ro"));
    CHECK(other.driver.config().num_queues == other.device.max_queues());
}

TEST_CASE("SET_CONFIG sets the write cache mode and nothing else", "[config]") {
    status_daemon setup;
    test_guest guest(setup.daemon.device("rw"));
    constexpr uint32_t writeback = offsetof(blk_config, writeback);
    guest.device.write_config(writeback, bytes_of(uint8_t{0}));
    CHECK(guest.driver.config().writeback == 0);
    std::vector<std::byte> data(4096, std::byte{7});
    CHECK(guest.driver.write(0, data).status == blk_ok); // now with a flush behind it
    guest.device.write_config(writeback, bytes_of(uint8_t{1}));
    CHECK(guest.driver.config().writeback == 1);
    // A vDPA device cannot refuse, only take no notice of all but that byte.
    auto is_refused = [&guest](uint32_t offset, std::span<const std::byte> value) {
        try {
            guest.device.write_config(offset, value);
        } catch (const refused&) {
            return true;
        }
        return vdpa_world();
    };
    CHECK(is_refused(0, bytes_of(uint64_t{1})));
    if (!vdpa_world()) {
        CHECK(is_refused(writeback, bytes_of(uint8_t{2})));
        CHECK(is_refused(writeback, bytes_of(uint16_t{0})));
    }
    CHECK(guest.driver.config().writeback == 1);
    CHECK(guest.driver.capacity() == disk_sectors);
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("the features offered are those that are documented, no more and no fewer", "[config]") {
    status_daemon setup;
    const uint64_t always = bit(feature_version_1) | bit(feature_indirect) |
                            bit(feature_event_idx) | bit(feature_seg_max) | bit(feature_blk_size) |
                            bit(feature_topology) | bit(feature_flush) | bit(feature_mq) |
                            bit(feature_config_wce) |
                            (vdpa_world() ? bit(feature_access_platform)
                                          : bit(feature_log_all) | bit(feature_protocol));
    constexpr uint64_t changing = bit(feature_discard) | bit(feature_write_zeroes);
    CHECK(open_device(setup.daemon.device("rw"))->device_features() == (always | changing));
    auto ro = open_device(setup.daemon.device("ro"));
    uint64_t features = ro->device_features();
    CHECK((features & (always | bit(feature_ro))) == (always | bit(feature_ro)));
    CHECK((features & ~(always | changing | bit(feature_ro))) == 0);
    CHECK_THROWS_AS(ro->set_driver_features(features | bit(24)), refused);
    CHECK_THROWS_AS(ro->set_driver_features(bit(63)), refused);
}

TEST_CASE("the vhost-user protocol features offered are those that are documented", "[config]") {
    vhost_user_only skip("only vhost-user has protocol features");
    status_daemon setup;
    constexpr uint64_t protocol =
        bit(vu_feature_mq) | bit(vu_feature_log_shmfd) | bit(vu_feature_reply_ack) |
        bit(vu_feature_backend_req) | bit(vu_feature_config) | bit(vu_feature_inflight_shmfd) |
        bit(vu_feature_reset_device) | bit(vu_feature_configure_mem_slots) | bit(vu_feature_status);
    vhost_user_client rw(setup.daemon.socket("rw"));
    CHECK(rw.get_protocol_features() == protocol);
}

} // namespace vql::guest
