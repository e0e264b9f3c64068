// SPDX-License-Identifier: GPL-2.0-only
// What is particular to the kinds of targets: block devices, pinned memory, storage that fails.
#include "e2e.h"
#include "loop_device.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

namespace vql::guest {
namespace {

using Catch::Matchers::ContainsSubstring;

constexpr uint64_t disk_bytes = 32 << 20;

} // namespace

TEST_CASE("a block device carries verified I/O, and belongs to one user", "[engine]") {
    temporary_directory files(storage_folder());
    const std::string file = files / "image";
    make_file(file, disk_bytes);
    loop_device loop(file);
    if (!loop.refusal().empty())
        SKIP(loop.refusal());
    std::vector<std::byte> model(disk_bytes);
    {
        test_daemon daemon(file_target("t", loop.path()) + disk_on("d", "t", "queues = 2\n"));
        guest_options options;
        options.blk.queues = 2;
        options.blk.depth = 16;
        test_guest guest(daemon.device("d"), options);
        model_run run(guest.driver, model, test_seed(700));
        run.run(scaled(4000, 100));
        CHECK(run.counts().discard.count > 0);
        CHECK(run.counts().write_zeroes.count > 0);

        // Nobody else gets it while it is served.
        const auto mount = run_command({"mkfs.ext4", "-q", loop.path()});
        CHECK(mount.status != 0);
    }
    CHECK(compare_backing(model, {{loop.path(), 0, disk_bytes}}) == disk_bytes);
}

// A buffer of its own is a target's when all that are shared are in use; here both kinds come and
// go.
TEST_CASE("targets that need more bounce buffers than there are all go on", "[engine]") {
    vhost_user_only only("its subject is the io_uring engine");
    temporary_directory files(storage_folder());
    make_file(files / "a", disk_bytes);
    make_file(files / "b", disk_bytes);
    test_daemon daemon(file_target("t", files / "a") + file_target("u", files / "b") +
                           disk_on("a", "t") + disk_on("b", "u"),
                       {"--pollers", "0"});
    struct reader {
        test_guest guest;
        uint64_t data, done = 0;
        reader(const std::string& socket, unsigned depth) : guest(socket, options(depth)) {
            data = guest.memory->allocate(8192) + 8; // O_DIRECT takes nothing from there
        }
        static guest_options options(unsigned depth) {
            guest_options o;
            o.blk.queue_size = 256;
            o.blk.depth = depth;
            return o;
        }
        void step() {
            while (blk_request* r = guest.driver.acquire(0)) {
                guest.driver.shape(*r, blk_op::read, done % 1000 * 8, data, 4096);
                r->indirect = true;
                REQUIRE(guest.driver.submit(*r));
            }
            guest.driver.ring(0);
            while (blk_request* r = guest.driver.poll(0)) {
                REQUIRE(r->status == blk_ok);
                guest.driver.release(*r);
                done++;
            }
        }
    };
    reader a(daemon.device("a"), 128), b(daemon.device("b"), 16);
    const uint64_t enough = scaled(20000, 2000);
    deadline until(default_timeout());
    while ((a.done < enough || b.done < enough / 8) && !until.passed()) {
        a.step();
        b.step();
    }
    CHECK(a.done >= enough);
    CHECK(b.done >= enough / 8);
}

TEST_CASE("guest memory pinned for the rings carries verified I/O, and can change", "[engine]") {
    vhost_user_only skip("io_uring cannot pin memory that the module maps");
    temporary_directory files(storage_folder());
    const std::string file = files / "image";
    make_file(file, disk_bytes);
    test_daemon daemon(file_target("t", file) + disk_on("d", "t", "queues = 2\n"),
                       {"--register-memory", "always"});
    std::vector<std::byte> model(disk_bytes);
    for (uint64_t round = 0; round < 3; round++) {
        guest_options options;
        options.slots = 8;
        options.blk.queues = 2;
        options.blk.depth = 16;
        options.vhost.slots_one_by_one = round == 1; // each slot pins anew
        test_guest guest(daemon.device("d"), options);
        model_run run(guest.driver, model, test_seed(710 + round));
        run.run(scaled(3000, 100));
        guest.driver.stop();
    }
    CHECK(compare_backing(model, {{file, 0, disk_bytes}}) == disk_bytes);
}

TEST_CASE("storage that fails gives the guest an error, and the operator the reason", "[engine]") {
    temporary_directory files(storage_folder());
    const std::string file = files / "image";
    make_file(file, disk_bytes);
    test_daemon daemon(file_target("t", file) + disk_on("d", "t"));
    test_guest guest(daemon.device("d"));
    std::vector<std::byte> data(8192, std::byte{0x5a});
    REQUIRE(guest.driver.write(0, data).status == blk_ok);

    // Someone cuts the file short behind the daemon's back.
    REQUIRE(truncate(file.c_str(), 1 << 20) == 0);
    CHECK(guest.driver.read((2 << 20) / 512, data).status == blk_ioerr);
    CHECK(daemon.wait_log("target t"));
    CHECK_THAT(daemon.log(), ContainsSubstring("failed, the last a read at byte 2097152"));

    // The rest of the disk is not touched by that.
    CHECK(guest.driver.read(0, data).status == blk_ok);
    CHECK(data == std::vector<std::byte>(8192, std::byte{0x5a}));
}

} // namespace vql::guest
