// SPDX-License-Identifier: GPL-2.0-only
// Queues stop, reset and start again, and memory comes and goes, with requests in flight.
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 32 << 20;

struct lifecycle_daemon {
    test_storage storage{storage_folder()};
    test_daemon daemon;
    std::string path;
    lifecycle_daemon() : daemon(configuration()), path(daemon.device("d")) {}
    std::string configuration() {
        storage.add("t", disk_bytes);
        return storage.targets() + storage.disk("d", "t", "queues = 2\n");
    }
    uint64_t compare(const std::vector<std::byte>& model) const {
        return compare_backing(model, {storage.part("t")});
    }
};

guest_options two_queues() {
    guest_options options;
    options.blk.queues = 2;
    options.blk.depth = 24;
    options.memory_bytes = 48 << 20;
    return options;
}

std::vector<std::byte> snapshot(const guest_memory& memory) {
    std::span<std::byte> all =
        memory.span(memory.slots().front().gpa, memory.end() - memory.slots().front().gpa);
    return {all.begin(), all.end()};
}

} // namespace

TEST_CASE("GET_VRING_BASE drains: all that was taken is used, the rest is taken up at the restart",
          "[lifecycle]") {
    lifecycle_daemon setup;
    test_guest guest(setup.path, two_queues());
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(400));
    for (uint64_t round = scaled(20, 4); round > 0; round--) {
        run.start(60);
        run.step();
        run.step();
        guest.driver.stop();
        for (unsigned q = 0; q < 2; q++) {
            uint16_t used = guest.driver.queue(q).used_index();
            CHECK(guest.device.stop_queue(q) == used); // stopping twice is harmless
        }
        std::vector<std::byte> before = snapshot(*guest.memory);
        usleep(2000);
        CHECK(snapshot(*guest.memory) == before); // nothing moves while the queues stand still
        guest.driver.resume();
        run.drain();
    }
    run.run(100);
    CHECK(setup.compare(model) == disk_bytes);
}

TEST_CASE("a reset with requests in flight leaves nothing behind that writes memory or disk",
          "[lifecycle]") {
    lifecycle_daemon setup;
    test_guest guest(setup.path, two_queues());
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(410));
    for (uint64_t round = 0; round < scaled(15, 6); round++) {
        INFO("round " << round);
        run.start(80);
        run.step();
        run.step();
        switch (vdpa_world() ? 0 : round % 3) {
        case 0:
            guest.device.set_status(0);
            CHECK(guest.device.status() == 0);
            break;
        case 1: guest.vhost_user().client().reset_device(); break;
        default: guest.vhost_user().client().reset_owner(); break;
        }
        std::vector<std::byte> before = snapshot(*guest.memory);
        usleep(2000);
        CHECK(snapshot(*guest.memory) == before);
        guest.driver.start();
        run.settle_lost();
        run.run(40);
    }
    CHECK(setup.compare(model) == disk_bytes);
}

TEST_CASE("memory slots are added and removed under load", "[lifecycle]") {
    lifecycle_daemon setup;
    guest_options options = two_queues();
    guest_memory memory(0, uint64_t{1} << 33);
    memory.add_slot(0, 64 << 20);
    auto device = open_device(setup.path);
    blk_driver driver(memory, *device, options.blk);
    driver.start();
    std::vector<std::byte> model(disk_bytes);
    model_run run(driver, model, test_seed(420));
    for (uint64_t round = 0; round < scaled(20, 4); round++) {
        run.start(60);
        run.step();
        uint64_t gpa = round % 2 == 0 ? uint64_t{1} << 32 : 64 << 20; // far away, or next to it
        memory.add_slot(gpa, 2 << 20);
        const memory_slot slot = memory.slot_of(gpa);
        device->add_slot(slot);
        run.drain();

        blk_request* request = driver.acquire(0);
        driver.shape(*request, blk_op::read, 16, gpa + 512, 8192);
        REQUIRE(driver.execute(*request).status == blk_ok);
        CHECK(std::memcmp(memory.at(gpa + 512), model.data() + 16 * sector_bytes, 8192) == 0);

        run.start(60);
        run.step();
        device->remove_slot(slot);
        memory.remove_slot(gpa);
        run.drain();
    }
    CHECK(setup.compare(model) == disk_bytes);
}

TEST_CASE("a slot next to the others lets buffers reach across, and a removed one does not",
          "[lifecycle]") {
    lifecycle_daemon setup;
    guest_memory memory(0, 64 << 20);
    memory.add_slot(0, 16 << 20);
    uint64_t edge = 16 << 20;
    auto device = open_device(setup.path);
    blk_driver driver(memory, *device);
    driver.start();
    std::vector<std::byte> data(8192);
    random_source(test_seed(430)).fill(data);
    REQUIRE(driver.write(0, data).status == blk_ok);

    memory.add_slot(edge, 2 << 20);
    memory_slot slot = memory.slot_of(edge);
    device->add_slot(slot);
    blk_request* request = driver.acquire(0);
    driver.shape(*request, blk_op::read, 0, edge - 4096 - 8, 8192);
    REQUIRE(driver.execute(*request).status == blk_ok);
    CHECK(std::memcmp(memory.at(edge - 4096 - 8), data.data(), 8192) == 0);

    device->remove_slot(slot);
    CHECK(driver.read(0, data).status == blk_ok);
    std::memset(memory.at(edge), 0x77, 4096);
    request = driver.acquire(0);
    driver.shape(*request, blk_op::read, 0, edge - 4096, 8192);
    REQUIRE(driver.submit(*request));
    driver.ring(0);
    // The chain names memory that is no more: the ring is broken.
    REQUIRE(device->wait_ring_error(0, default_timeout()));
    CHECK(std::all_of(memory.at(edge), memory.at(edge + 4096),
                      [](std::byte value) { return value == std::byte{0x77}; }));
}

TEST_CASE("a new memory table with other addresses is taken while the queues stand still",
          "[lifecycle]") {
    lifecycle_daemon setup;
    guest_options options = two_queues();
    options.slots = 4;
    test_guest guest(setup.path, options);
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(440));
    for (uint64_t round = 0; round < scaled(10, 3); round++) {
        run.start(50);
        run.step();
        guest.driver.stop();
        guest.driver.resume(); // sends the table again
        run.drain();
    }
    CHECK(setup.compare(model) == disk_bytes);
}

TEST_CASE("as many memory slots as the daemon says, and not one more", "[lifecycle]") {
    vhost_user_only skip("vhost-vdpa has no slots to count");
    lifecycle_daemon setup;
    vhost_user_transport device(setup.path);
    uint64_t most = device.client().get_max_mem_slots();
    REQUIRE(most >= 32);
    guest_memory memory(0, (most + 1) * (2 << 20));
    for (uint64_t i = 0; i < most; i++) {
        memory.add_slot(i * (2 << 20), 2 << 20);
    }
    blk_driver driver(memory, device);
    driver.start();
    std::vector<std::byte> data(most * (1 << 16));
    random_source(test_seed(450)).fill(data);
    uint64_t hole = memory.allocate((most - 8) * (2 << 20)); // so that what follows lies high
    CHECK(driver.write(0, data).status == blk_ok);
    std::vector<std::byte> back(data.size());
    CHECK(driver.read(0, back).status == blk_ok);
    CHECK(back == data);
    memory.free(hole, (most - 8) * (2 << 20));
    memory.add_slot(most * (2 << 20), 2 << 20);
    const memory_slot& extra = memory.slots().back();
    CHECK_THROWS_AS(device.add_slot(extra), refused);
    CHECK_THROWS_AS(device.remove_slot(extra), refused);
    CHECK(driver.flush().status == blk_ok);
}

TEST_CASE("a disabled queue is left alone, and goes on when it is enabled", "[lifecycle]") {
    lifecycle_daemon setup;
    test_guest guest(setup.path, two_queues());
    guest.device.enable_queue(1, false);
    blk_request* request = guest.driver.acquire(1);
    guest.driver.shape(*request, blk_op::flush, 0, 0, 0);
    REQUIRE(guest.driver.submit(*request));
    guest.driver.ring(1);
    CHECK(guest.driver.flush(0).status == blk_ok);
    usleep(5000);
    CHECK(guest.driver.poll(1) == nullptr);
    guest.device.enable_queue(1, true);
    CHECK(guest.driver.next().ok());
}

TEST_CASE("another call eventfd is used from when it was set, under load", "[lifecycle]") {
    lifecycle_daemon setup;
    guest_options options = two_queues();
    options.blk.interrupts = true;
    test_guest guest(setup.path, options);
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(460));
    unique_fd masked = make_eventfd();
    for (int round = 0; round < 10; round++) {
        run.start(30);
        run.step();
        // QEMU masks a vector by pointing it elsewhere, and signals what it missed when it unmasks.
        guest.device.set_call(0, masked.get());
        run.step();
        guest.device.set_call(0, guest.driver.queue(0).call_fd());
        if (take_eventfd(masked.get(), deadline(milliseconds(0))) != 0) {
            signal_eventfd(guest.driver.queue(0).call_fd());
        }
        run.drain();
    }
    // Without any, the driver polls.
    guest.device.set_call(0, std::nullopt);
    blk_request* request = guest.driver.acquire(0);
    guest.driver.shape(*request, blk_op::flush, 0, 0, 0);
    REQUIRE(guest.driver.submit(*request));
    guest.driver.ring(0);
    deadline until(default_timeout());
    blk_request* done = nullptr;
    while (done == nullptr && !until.passed()) {
        done = guest.driver.poll(0);
    }
    CHECK(done == request);
}

TEST_CASE("another call eventfd is signalled as soon as it is used", "[lifecycle]") {
    // The old one may be signalled after the VMM has looked there, and nobody looks again.
    vhost_user_only skip("the kernel is done with the old one when it has taken the new one");
    lifecycle_daemon setup;
    test_guest guest(setup.path, two_queues());
    unique_fd other = make_eventfd();
    guest.device.set_call(0, other.get());
    CHECK(take_eventfd(other.get(), deadline(default_timeout())) != 0);
}

} // namespace vql::guest
