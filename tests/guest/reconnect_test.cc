// SPDX-License-Identifier: GPL-2.0-only
// The VMM goes away, or the daemon does, with requests in flight: nothing that was acknowledged is
// lost, and everything in flight is answered once.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 32 << 20;

struct one_disk {
    test_storage storage{storage_folder()};
    test_daemon daemon;
    one_disk() : daemon(configuration()) {}
    std::string configuration() {
        storage.add("t", disk_bytes);
        return storage.targets() + storage.disk("d", "t", "queues = 4\n");
    }
    uint64_t compare(const std::vector<std::byte>& model) const {
        return compare_backing(model, {storage.part("t")});
    }
};

guest_options loaded_guest(bool inflight, unsigned queues) {
    guest_options options;
    options.slots = 4;
    options.memory_bytes = 256 << 20;
    options.blk.queues = queues;
    options.blk.depth = 24;
    options.blk.interrupts = queues == 1;
    if (!inflight) {
        options.vhost.protocol_features = ~bit(vu_feature_inflight_shmfd);
    }
    return options;
}

// Leaves the device with requests in flight, on some rounds in the middle of a vhost-user message.
void leave(test_guest& guest, model_run& run, random_source& random) {
    run.start(200);
    for (uint64_t steps = random.between(1, 4); steps > 0; steps--) {
        run.step();
    }
    if (vdpa_world()) {
        guest.device.disconnect();
        return;
    }
    vhost_user_client& client = guest.vhost_user().client();
    vu_header header{vu_set_mem_table, vu_version, sizeof(vu_mem_table)};
    vu_mem_table table{};
    table.count = 4;
    switch (random.below(4)) {
    case 0: client.send_bytes(bytes_of(header).first(random.between(1, 11))); break;
    case 1:
        client.send_bytes(bytes_of(header));
        client.send_bytes(bytes_of(table).first(random.between(1, 100)));
        break;
    default: break;
    }
    guest.device.disconnect();
}

} // namespace

TEST_CASE("a VMM that reconnects goes on with its rings, with and without the in-flight area",
          "[reconnect]") {
    bool inflight = GENERATE(false, true);
    if (vdpa_world() && !inflight) {
        return; // the module always keeps the record
    }
    one_disk disk;
    test_daemon& daemon = disk.daemon;
    test_guest guest(daemon.device("d"), loaded_guest(inflight, 4));
    if (!vdpa_world()) {
        CHECK((guest.vhost_user().inflight_fd() >= 0) == inflight);
    }
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(500));
    random_source random(test_seed(501));
    for (uint64_t round = scaled(20, 4); round > 0; round--) {
        leave(guest, run, random);
        // The daemon takes the new connection once it has drained the old one: from then on the
        // used index in our memory is final.
        guest.device.reconnect();
        guest.driver.resume();
        run.run(100); // begins by finishing what was in flight
    }
    CHECK(disk.compare(model) == disk_bytes);
}

TEST_CASE("a VMM that lost its rings finds every acknowledged write", "[reconnect]") {
    one_disk disk;
    test_daemon& daemon = disk.daemon;
    test_guest guest(daemon.device("d"), loaded_guest(false, 4));
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(510));
    random_source random(test_seed(511));
    for (uint64_t round = scaled(20, 4); round > 0; round--) {
        leave(guest, run, random);
        guest.device.reconnect();
        guest.driver.start();
        run.settle_lost();
        run.run(60);
    }
    CHECK(disk.compare(model) == disk_bytes);
}

TEST_CASE("a daemon that is killed under load and started again answers each request once",
          "[crash]") {
    unsigned queues = GENERATE(1u, 4u);
    one_disk disk;
    test_daemon& daemon = disk.daemon;
    test_guest guest(daemon.device("d"), loaded_guest(true, queues));
    std::vector<std::byte> model(disk_bytes);
    run_options mix;
    mix.max_bytes = 1 << 20; // large and small together, so that they finish in another order
    model_run run(guest.driver, model, test_seed(520 + queues), mix);
    random_source random(test_seed(530 + queues));
    // A kill counts when the rings alone would not tell what is left to do: then it was the
    // in-flight area that did.
    uint64_t rounds = 0;
    uint64_t out_of_order = 0;
    uint64_t least = std::max<uint64_t>(10, scaled(12));
    while (rounds < least || (out_of_order < least / 3 && rounds < 10 * least)) {
        INFO("round " << rounds);
        rounds++;
        run.start(uint64_t{1} << 40);
        for (uint64_t steps = random.between(1, 60); steps > 0; steps--) {
            run.step();
        }
        usleep(static_cast<useconds_t>(random.below(500)));
        daemon.kill();
        bool in_order = true;
        for (unsigned q = 0; q < queues; q++) {
            in_order = in_order && guest.driver.queue(q).used_in_order();
        }
        out_of_order += in_order ? 0 : 1;
        daemon.start();
        guest.daemon_is_back();
        // A completion of what is not in flight throws; what never completes times out.
        run.drain();
    }
    run.run(200);
    CHECK(disk.compare(model) == disk_bytes);
    leave_for_case(model, disk.storage.part("t"));
    if (out_of_order < least / 3) { // a kernel that checks itself is slow, and its drive then quick
        SKIP("of " << rounds << " kills only " << out_of_order
                   << " left requests that were answered out of order; the rest is checked");
    }
}

TEST_CASE("whoever takes a queue over interrupts for what may not have been told of",
          "[reconnect][crash]") {
    // An answer that is published and, as far as the driver knows, not signalled: it waits for an
    // interrupt, asks for nothing else, and nothing is in flight that would bring another one.
    bool daemon_dies = GENERATE(true, false);
    guest_options options;
    options.vhost.call_last = !vdpa_world() && GENERATE(false, true);
    options.blk.event_idx = GENERATE(false, true);
    INFO((daemon_dies ? "daemon" : "VMM")
         << ", call_last " << options.vhost.call_last << ", event_idx " << options.blk.event_idx);
    one_disk disk;
    test_guest guest(disk.daemon.device("d"), options);
    int call = guest.driver.queue(0).call_fd();
    CHECK(guest.driver.flush().status == blk_ok);
    if (daemon_dies) {
        disk.daemon.kill();
    } else {
        guest.device.disconnect();
        guest.device.reconnect(); // taken when the old connection is drained
    }
    take_eventfd(call, deadline(milliseconds(0)));
    if (daemon_dies) {
        disk.daemon.start();
        guest.daemon_is_back();
    } else {
        guest.driver.resume();
    }
    CHECK(take_eventfd(call, deadline(default_timeout())) != 0);
}

TEST_CASE("a queue that starts interrupts once, and then as its driver wishes", "[reconnect]") {
    vhost_user_only skip("a vDPA queue may change hands twice as it starts");
    guest_options options;
    options.vhost.call_last = GENERATE(false, true);
    options.blk.event_idx = GENERATE(false, true);
    INFO("call_last " << options.vhost.call_last << ", event_idx " << options.blk.event_idx);
    one_disk disk;
    test_guest guest(disk.daemon.device("d"), options); // wants no interrupts
    int call = guest.driver.queue(0).call_fd();
    // A ring that starts again has its descriptor, and with call_last gets it again.
    for (int round = options.vhost.call_last ? 2 : 0; round < 3; round++) {
        CHECK(take_eventfd(call, deadline(default_timeout())) != 0);
        for (int i = 0; i < 20; i++) {
            CHECK(guest.driver.flush().status == blk_ok);
        }
        guest.driver.stop(); // all that it had to say is said
        CHECK(take_eventfd(call, deadline(milliseconds(0))) == 0);
        guest.device.enable_queue(0, false);
        guest.driver.resume();
    }
}

TEST_CASE("a daemon that ends by SIGTERM under load has answered what it took", "[crash]") {
    one_disk disk;
    test_daemon& daemon = disk.daemon;
    test_guest guest(daemon.device("d"), loaded_guest(false, 4));
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(540));
    for (int round = 0; round < 3; round++) {
        run.start(uint64_t{1} << 40);
        for (int steps = 0; steps < 20; steps++) {
            run.step();
        }
        CHECK(daemon.terminate() == 0);
        daemon.start();
        guest.daemon_is_back();
        run.drain();
    }
    CHECK(disk.compare(model) == disk_bytes);
}

} // namespace vql::guest
