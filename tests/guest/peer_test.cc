// SPDX-License-Identifier: GPL-2.0-only
// The test driver against a device that others wrote: what fails here is the driver's fault.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

namespace vql::guest {
namespace {

// qemu-storage-daemon with one vhost-user-blk export on a file.
struct storage_daemon {
    temporary_directory directory;
    std::unique_ptr<child_process> child;

    storage_daemon(uint64_t bytes, unsigned queues) {
        make_file(image(), bytes);
        child = std::make_unique<child_process>(
            std::vector<std::string>{
                "qemu-storage-daemon", "--blockdev",
                "driver=file,node-name=disk,filename=" + image() + ",discard=unmap", "--export",
                "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path=" +
                    socket() + ",writable=on,num-queues=" + std::to_string(queues)},
            directory / "log", directory / "log");
    }
    std::string image() const { return directory / "image"; }
    std::string socket() const { return directory / "socket"; }
};

} // namespace

TEST_CASE("the test driver does verified random I/O on qemu-storage-daemon", "[peer]") {
    if (find_program("qemu-storage-daemon").empty()) {
        SKIP("qemu-storage-daemon is not installed");
    }
    unsigned queues = GENERATE(1u, 4u);
    bool event_idx = GENERATE(false, true);
    bool interrupts = GENERATE(false, true);
    constexpr uint64_t bytes = 32 << 20;
    storage_daemon server(bytes, queues);
    guest_options options;
    options.slots = 8;
    options.blk.queues = queues;
    options.blk.depth = 12;
    options.blk.queue_size = 64;
    options.blk.event_idx = event_idx;
    options.blk.interrupts = interrupts;
    options.blk.check_failed_used_bytes = false;
    test_guest guest(server.socket(), options);
    std::vector<std::byte> model(bytes);
    run_options run_options;
    run_options.max_bytes = 64 << 10;
    // libvhost-user refuses descriptors without a length.
    run_options.layout.zero_length = false;
    model_run run(guest.driver, model, test_seed(), run_options);
    run.run(scaled(3000));
    CHECK(run.counts().total() == scaled(3000));
    CHECK(run.counts().read.count > 0);
    CHECK(run.counts().write.count > 0);
    CHECK(compare_backing(model, {{server.image(), 0, bytes}}) == bytes);
    std::string id;
    CHECK(guest.driver.get_id(id).status == blk_ok);
    CHECK(id == "vhost_user_blk");
    guest.driver.stop();
    CHECK(server.child->running());
}

} // namespace vql::guest
