// SPDX-License-Identifier: GPL-2.0-only
// What only a vhost-vdpa device shows: its memory map that changes page by page, suspend and
// resume, and that it stays when the daemon goes. Hidden: run in the vDPA world, with [.vdpa].
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

constexpr uint64_t disk_bytes = 16 << 20;
constexpr uint64_t far = uint64_t{1} << 36; // a guest address behind all of its memory

struct vdpa_disk {
    test_storage storage;
    test_daemon daemon;
    std::string path;

    vdpa_disk() : daemon(configuration()), path(daemon.device("d")) {}
    std::string configuration() {
        needs_vdpa_world();
        storage.add("t", disk_bytes);
        return storage.targets() + storage.disk("d", "t", "queues = 2\n");
    }
};

guest_options two_queues() {
    guest_options options;
    options.blk.queues = 2;
    options.blk.depth = 16;
    options.memory_bytes = 32 << 20;
    return options;
}

// Private memory of this process, as that of a VMM that shares none.
class private_memory {
  public:
    explicit private_memory(size_t bytes)
        : bytes_(bytes),
          memory_(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)), std::free) {
        std::memset(memory_.get(), 0x77, bytes);
    }
    std::span<std::byte> all() { return {memory_.get(), bytes_}; }
    std::span<std::byte> part(size_t at, size_t bytes) { return all().subspan(at, bytes); }
    bool untouched() {
        return std::all_of(all().begin(), all().end(),
                           [](std::byte value) { return value == std::byte{0x77}; });
    }

  private:
    size_t bytes_;
    std::unique_ptr<std::byte, void (*)(void*)> memory_;
};

// Noise on the first bytes of the disk.
std::vector<std::byte> write_noise(blk_driver& driver, size_t bytes) {
    std::vector<std::byte> data(bytes);
    random_source(test_seed(1000)).fill(data);
    REQUIRE(driver.write(0, data).status == blk_ok);
    return data;
}

blk_result read_to(blk_driver& driver, uint64_t gpa, uint32_t bytes) {
    blk_request* request = driver.acquire(0);
    driver.shape(*request, blk_op::read, 0, gpa, bytes);
    return driver.execute(*request);
}

bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

void submit_flush(blk_driver& driver, unsigned queue) {
    blk_request* request = driver.acquire(queue);
    driver.shape(*request, blk_op::flush, 0, 0, 0);
    REQUIRE(driver.submit(*request));
    driver.ring(queue);
}

} // namespace

TEST_CASE("the device says what it is, has one map, and can be suspended", "[.vdpa]") {
    vdpa_disk setup;
    vhost_vdpa_client client(setup.path);
    CHECK(client.device_id() == 2); // virtio 1.3 §5
    CHECK(client.queues() == 2);
    CHECK(client.max_queue_size() == 1024);
    CHECK(client.config_bytes() >= blk_config_bytes);
    CHECK(client.groups() == 1);
    CHECK(client.address_spaces() == 1);
    CHECK(client.has(backend_iotlb_batch));
    CHECK(client.has(backend_suspend));
    CHECK(client.has(backend_resume));
    CHECK(client.status() == 0);
}

TEST_CASE("a driver that would use addresses past the map, or the legacy interface, is refused",
          "[.vdpa]") {
    vdpa_disk setup;
    vhost_vdpa_client client(setup.path);
    for (unsigned needed : {feature_access_platform, feature_version_1}) {
        INFO("without feature " << needed);
        client.set_status(0);
        client.set_status(status_acknowledge | status_driver);
        bool taken = true;
        try {
            client.set_features(client.features() & ~bit(needed));
            client.set_status(status_acknowledge | status_driver | status_features_ok);
            taken = (client.status() & status_features_ok) != 0;
        } catch (const refused&) {
            taken = false;
        }
        CHECK_FALSE(taken);
    }
}

TEST_CASE("a device that is in use cannot be opened again", "[.vdpa]") {
    vdpa_disk setup;
    test_guest guest(setup.path, two_queues());
    unique_fd second(open(setup.path.c_str(), O_RDWR | O_CLOEXEC));
    CHECK_FALSE(second);
    CHECK(errno == EBUSY);
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("a suspended device does nothing, and goes on when it is resumed", "[.vdpa]") {
    vdpa_disk setup;
    test_guest guest(setup.path, two_queues());
    vhost_vdpa_client& client = guest.vhost_vdpa().client();
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(1010));
    for (uint64_t round = scaled(10, 3); round > 0; round--) {
        run.start(60);
        run.step();
        client.suspend();
        for (unsigned queue = 0; queue < 2; queue++) {
            CHECK(client.vring_base(queue) == guest.driver.queue(queue).used_index());
        }
        run.step(); // kicks are of no use
        unsigned in_flight = guest.driver.in_flight();
        usleep(5000);
        for (unsigned queue = 0; queue < 2; queue++) {
            CHECK(client.vring_base(queue) == guest.driver.queue(queue).used_index());
        }
        CHECK(guest.driver.in_flight() == in_flight);
        client.resume();
        run.drain();
    }
    CHECK(compare_backing(model, {setup.storage.part("t")}) == disk_bytes);
}

TEST_CASE("a VMM that writes the whole configuration, as QEMU does, sets the cache mode alone",
          "[.vdpa]") {
    vdpa_disk setup;
    test_guest guest(setup.path, two_queues());
    blk_config before = guest.driver.config();
    for (uint8_t writeback : {uint8_t{0}, uint8_t{1}}) {
        blk_config wanted{};
        std::memset(static_cast<void*>(&wanted), 0x55, sizeof(wanted));
        wanted.writeback = writeback;
        guest.device.write_config(0, bytes_of(wanted).first(blk_config_bytes));
        blk_config now = guest.driver.config();
        CHECK(now.writeback == writeback);
        now.writeback = before.writeback;
        CHECK(std::memcmp(&now, &before, blk_config_bytes) == 0);
        CHECK(guest.driver.flush().status == blk_ok);
    }
}

TEST_CASE("private memory is read and written as shared memory is", "[.vdpa]") {
    vdpa_disk setup;
    test_guest guest(setup.path, two_queues());
    std::vector<std::byte> data = write_noise(guest.driver, 256 << 10);
    private_memory memory(256 << 10);
    vhost_vdpa_client& client = guest.vhost_vdpa().client();
    client.map(far, memory.all());
    REQUIRE(read_to(guest.driver, far, 256 << 10).status == blk_ok);
    CHECK(same(memory.all(), data));

    std::reverse(memory.all().begin(), memory.all().end());
    blk_request* request = guest.driver.acquire(0);
    guest.driver.shape(*request, blk_op::write, 1024, far, 256 << 10);
    REQUIRE(guest.driver.execute(*request).status == blk_ok);
    std::vector<std::byte> back(256 << 10);
    REQUIRE(guest.driver.read(1024, back).status == blk_ok);
    CHECK(same(memory.all(), back));
}

TEST_CASE("what the device may only read is written by nobody", "[.vdpa]") {
    vdpa_disk setup;
    test_guest guest(setup.path, two_queues());
    write_noise(guest.driver, 4096);
    private_memory memory(64 << 10);
    guest.vhost_vdpa().client().map(far, memory.all(), false);
    // To write from there is what it is for.
    blk_request* request = guest.driver.acquire(0);
    guest.driver.shape(*request, blk_op::write, 8, far, 4096);
    CHECK(guest.driver.execute(*request).status == blk_ok);

    request = guest.driver.acquire(0);
    guest.driver.shape(*request, blk_op::read, 0, far, 4096);
    REQUIRE(guest.driver.submit(*request));
    guest.driver.ring(0);
    CHECK(guest.device.wait_ring_error(0, default_timeout()));
    CHECK(memory.untouched());
    CHECK(guest.driver.flush(1).status == blk_ok);
}

TEST_CASE("pages are exchanged in one batch while the queues run, as firmware does it", "[.vdpa]") {
    vdpa_disk setup;
    guest_options options = two_queues();
    options.blk.interrupts = true;
    test_guest guest(setup.path, options);
    vhost_vdpa_client& client = guest.vhost_vdpa().client();
    constexpr unsigned pages = 32;
    constexpr size_t page = 4096;
    private_memory memory[2] = {private_memory(pages * page), private_memory(pages * page)};
    for (unsigned i = 0; i < pages; i++) {
        client.map(far + i * page, memory[0].part(i * page, page));
    }
    std::vector<std::byte> model(disk_bytes);
    std::vector<std::byte> data = write_noise(guest.driver, pages * page);
    std::copy(data.begin(), data.end(), model.begin());
    run_options above;
    above.first_sector = pages * page / sector_bytes;
    above.sectors = disk_bytes / sector_bytes - above.first_sector;
    model_run run(guest.driver, model, test_seed(1020), above);
    for (uint64_t round = 1; round <= scaled(10, 4); round++) {
        run.start(40);
        run.step();
        private_memory& now = memory[round % 2];
        private_memory& before = memory[1 - round % 2];
        // Reversed, so that the pages are not where they were even in themselves.
        client.begin_batch();
        for (unsigned i = 0; i < pages; i++) {
            client.unmap(far + i * page, page);
            client.map(far + i * page, now.part((pages - 1 - i) * page, page));
        }
        client.end_batch();
        run.step();
        run.drain();
        std::memset(before.all().data(), 0x77, before.all().size());
        REQUIRE(read_to(guest.driver, far, pages * page).status == blk_ok);
        CHECK(before.untouched());
        for (unsigned i = 0; i < pages; i++) {
            CHECK(same(now.part((pages - 1 - i) * page, page),
                       std::span(data).subspan(i * page, page)));
        }
    }
    CHECK(compare_backing(model, {setup.storage.part("t")}) == disk_bytes);
}

TEST_CASE("memory that is taken away under requests in flight is not written afterwards",
          "[.vdpa]") {
    vdpa_disk setup;
    for (uint64_t round = scaled(10, 4); round > 0; round--) {
        test_guest guest(setup.path, two_queues());
        write_noise(guest.driver, 1 << 20);
        private_memory memory(16 * (64 << 10));
        vhost_vdpa_client& client = guest.vhost_vdpa().client();
        client.map(far, memory.all());
        for (unsigned i = 0; i < 16; i++) {
            blk_request* request = guest.driver.acquire(0);
            guest.driver.shape(*request, blk_op::read, 0, far + i * (64 << 10), 64 << 10);
            REQUIRE(guest.driver.submit(*request));
        }
        guest.driver.ring(0);
        client.unmap(far, memory.all().size());
        std::vector<std::byte> after(memory.all().begin(), memory.all().end());
        usleep(5000);
        CHECK(same(memory.all(), after));
        // What the device had not taken yet names memory that is no more: that breaks the ring.
        deadline until(default_timeout());
        while (guest.driver.in_flight() != 0 && (guest.device.status() & status_needs_reset) == 0 &&
               !until.passed()) {
            if (blk_request* request = guest.driver.poll(0)) {
                CHECK(request->ok());
            }
        }
        CHECK_FALSE(until.passed());
        CHECK(guest.driver.flush(1).status == blk_ok);
    }
}

TEST_CASE("kicks come at any time, and do no harm before the start and after the end", "[.vdpa]") {
    vdpa_disk setup;
    guest_options options = two_queues();
    options.start = false;
    test_guest guest(setup.path, options);
    vhost_vdpa_client& client = guest.vhost_vdpa().client();
    for (unsigned queue = 0; queue < 2; queue++) {
        client.set_vring_kick(queue, guest.driver.queue(queue).setup(0).kick_fd);
        guest.driver.queue(queue).kick();
    }
    guest.driver.start();
    CHECK(guest.driver.flush(1).status == blk_ok);
    guest.device.set_status(0);
    guest.driver.queue(0).kick();
    guest.driver.start();
    CHECK(guest.driver.flush(0).status == blk_ok);
    guest.device.disconnect();
    guest.driver.queue(0).kick();
    guest.device.reconnect();
    guest.driver.start();
    CHECK(guest.driver.flush(1).status == blk_ok);
}

TEST_CASE("a guest whose daemon is dead waits, and is served by the next one", "[.vdpa][crash]") {
    vdpa_disk setup;
    guest_options options = two_queues();
    options.blk.interrupts = true;
    test_guest guest(setup.path, options);
    REQUIRE(guest.driver.flush().status == blk_ok);
    setup.daemon.kill();
    submit_flush(guest.driver, 0);
    submit_flush(guest.driver, 1);
    usleep(100000);
    CHECK(guest.driver.poll(0) == nullptr);
    CHECK(guest.driver.poll(1) == nullptr);
    CHECK(guest.device.status() ==
          (status_acknowledge | status_driver | status_features_ok | status_driver_ok));
    CHECK(guest.driver.capacity() == disk_bytes / sector_bytes);
    setup.daemon.start();
    CHECK(setup.daemon.device("d") == setup.path);
    CHECK(guest.driver.next().ok());
    CHECK(guest.driver.next().ok());
}

TEST_CASE("a disk of an earlier daemon is served by nobody, and only force ends it under a guest",
          "[.vdpa][crash]") {
    vdpa_disk setup;
    // Known to the running daemon alone: not kept for its successor.
    const json extent = {{"target", setup.storage.target_of("t")},
                         {"offset", setup.storage.part("t").offset + disk_bytes},
                         {"length", disk_bytes}};
    const json late =
        disk_add({{"name", "late"}, {"extents", json::array({extent})}, {"transient", true}});
    setup.daemon.control().result(late);
    test_guest guest(setup.daemon.device("late"));
    const std::vector<std::byte> data = write_noise(guest.driver, 64 << 10);
    const json remove = {{"op", "disk_rm"}, {"name", "late"}};
    setup.daemon.kill();
    submit_flush(guest.driver, 0);
    setup.daemon.start();
    CHECK_THAT(setup.daemon.control().error(remove), ContainsSubstring("--force"));
    usleep(300000); // as often as the daemon looks
    CHECK(guest.driver.poll(0) == nullptr);
    CHECK(setup.daemon.entry("late").is_null());
    // It goes on with its disk; and ends by force, or without when it is gone.
    setup.daemon.control().result(late);
    CHECK(guest.driver.next().ok());
    std::vector<std::byte> found(data.size());
    CHECK(guest.driver.read(0, found).status == blk_ok);
    CHECK(same(found, data));
    setup.daemon.kill();
    setup.daemon.start();
    auto removed = setup.daemon.remove_by_force("late");
    CHECK(guest.disk_lost());
    guest.device.disconnect();
    removed.get();
    CHECK_THAT(setup.daemon.control().error(remove), ContainsSubstring("does not exist"));
}

TEST_CASE("the daemon ends although a VMM keeps a disk that was removed by force", "[.vdpa]") {
    vdpa_disk setup;
    test_guest guest(setup.path, two_queues());
    auto removed = setup.daemon.remove_by_force("d");
    CHECK(guest.disk_lost());
    CHECK(setup.daemon.terminate() == 0);
    CHECK_THROWS(removed.get());
    guest.device.disconnect();
    setup.daemon.start();
}

TEST_CASE("a guest resets its disk, stops, leaves and comes while the daemon is dead",
          "[.vdpa][crash]") {
    vdpa_disk setup;
    test_guest guest(setup.path, two_queues());
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(1030));
    for (unsigned round = 0; round < 4; round++) {
        INFO("round " << round);
        run.start(100);
        run.step();
        run.step();
        setup.daemon.kill();
        switch (round) {
        case 0:
            guest.device.set_status(0);
            guest.driver.start();
            break;
        case 1: try { guest.vhost_vdpa().client().suspend();
            } catch (const refused&) {
                // Nobody is there to end what is in flight, so there may be no state to go on from.
            }
            guest.device.set_status(0);
            guest.driver.start();
            break;
        case 2: // the VMM dies as well
            guest.device.disconnect();
            guest.device.reconnect();
            guest.driver.start();
            break;
        default: // nothing: the next daemon finishes what is in flight
            break;
        }
        setup.daemon.start();
        if (round < 3) {
            run.settle_lost();
        }
        run.run(40);
    }
    CHECK(compare_backing(model, {setup.storage.part("t")}) == disk_bytes);
}

} // namespace vql::guest
