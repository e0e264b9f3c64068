// SPDX-License-Identifier: GPL-2.0-only
// The two lanes of a vDPA disk, and when a queue changes from one to the other. Hidden: run in the
// vDPA world, with [.lane].
#include "e2e.h"
#include "model_run.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <sys/file.h>
#include <unistd.h>

namespace vql::guest {
namespace {

using Catch::Matchers::ContainsSubstring;

constexpr uint64_t disk_bytes = 16 << 20;

struct lane_disk {
    test_storage storage;
    test_daemon daemon;

    explicit lane_disk(const std::string& lines, unsigned promote_iops = 100)
        : daemon(configuration(lines, promote_iops)) {}
    std::string configuration(const std::string& lines, unsigned promote_iops) {
        needs_vdpa_world();
        storage.add("t", disk_bytes);
        return "[daemon]\npromote_iops = " + std::to_string(promote_iops) + "\ndemote_iops = 20\n" +
               storage.targets() + storage.disk("d", "t", lines);
    }
    nlohmann::json lane(unsigned queue) {
        return daemon.control().result({{"op", "disk_list"}}).at(0).at("lanes").at(queue);
    }
    std::string lane_name(unsigned queue) { return lane(queue).at("lane").get<std::string>(); }
};

void load_until_polled(lane_disk& disk, model_run& run) {
    deadline rises(default_timeout());
    do {
        run.run(100);
    } while (disk.lane_name(0) != "poll" && !rises.passed());
    REQUIRE(disk.lane_name(0) == "poll");
}

// Requests that the kernel lane serves without anybody's help.
run_options served_by_kernel() {
    run_options small;
    small.max_bytes = 4096;
    small.discard = small.write_zeroes = false;
    small.layout.misaligned = false;
    small.layout.max_pieces = 1;
    return small;
}

// Context switches of each of the process's threads, by thread.
std::map<std::string, uint64_t> switches(pid_t pid) {
    std::map<std::string, uint64_t> all;
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
        std::ifstream status(task.path() / "status");
        for (std::string word; status >> word;) {
            if (word.find("ctxt_switches:") != std::string::npos) {
                uint64_t n = 0;
                status >> n;
                all[task.path().filename()] += n;
            }
        }
    }
    return all;
}

} // namespace

TEST_CASE("a queue is a poller's while there is much to do, and the kernel's while there is little",
          "[.lane]") {
    lane_disk disk("lane = \"auto\"\n");
    guest_options options;
    options.blk.depth = 16;
    options.memory_bytes = 32 << 20;
    test_guest guest(disk.daemon.device("d"), options);
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(2000));
    for (unsigned round = 0; round < 3; round++) {
        INFO("round " << round);
        load_until_polled(disk, run);
        CHECK(disk.lane(0).at("why") == "much to do");
        const auto in_kernel = disk.lane(0).at("kernel_requests").get<uint64_t>();
        CHECK(in_kernel > 0);
        run.run(300); // and these are the poller's
        CHECK(disk.lane(0).at("kernel_requests") == in_kernel);
        deadline falls(default_timeout());
        do {
            run.run(1);
            usleep(200000);
        } while (disk.lane_name(0) != "kernel" && !falls.passed());
        REQUIRE(disk.lane_name(0) == "kernel");
        run.run(5);
        CHECK(disk.lane(0).at("kernel_requests").get<uint64_t>() > in_kernel);
    }
}

TEST_CASE("no thread of the daemon runs for a request in the kernel lane", "[.lane]") {
    const std::string mode = GENERATE("kernel", "auto");
    INFO("lane " << mode);
    lane_disk disk("lane = \"" + mode + "\"\n", 100000);
    test_guest guest(disk.daemon.device("d"));
    REQUIRE(guest.driver.flush().status == blk_ok);
    for (deadline until(default_timeout()); disk.lane_name(0) != "kernel" && !until.passed();) {
        usleep(100000);
    }
    sleep(2);
    const auto before = switches(disk.daemon.pid());
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::byte> block(4096);
    constexpr unsigned requests = 200;
    for (unsigned i = 0; i < requests; i++) {
        REQUIRE(guest.driver.read(8 * i, block).status == blk_ok);
    }
    const auto after = switches(disk.daemon.pid());
    const auto seconds =
        std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - start);
    REQUIRE(after.size() == before.size());
    CHECK(disk.lane(0).at("kernel_requests").get<uint64_t>() > requests);
    for (const auto& [thread, count] : after) {
        INFO("thread " << thread);
        // The control thread looks after things once a second, requests or not.
        const bool control = thread == std::to_string(disk.daemon.pid());
        CHECK(count - before.at(thread) <= (control ? 2 * uint64_t(seconds.count()) + 2 : 0));
    }
}

TEST_CASE("requests that are answered together interrupt the guest once", "[.lane]") {
    constexpr uint16_t together = 8; // what the module takes inline from one kick
    const std::string mode = GENERATE("kernel", "poll");
    const bool event_idx = GENERATE(false, true);
    INFO("lane " << mode << ", EVENT_IDX " << event_idx);
    lane_disk disk("lane = \"" + mode + "\"\n");
    guest_options options;
    options.blk.event_idx = event_idx;
    test_guest guest(disk.daemon.device("d"), options);
    virtqueue_driver& queue = guest.driver.queue(0);
    const uint64_t data = guest.memory->allocate(together * id_bytes);
    REQUIRE(guest.driver.flush().status == blk_ok);
    while (take_eventfd(queue.call_fd(), deadline(milliseconds(200)))) {
    } // of the start, and of who took the queue over then
    for (unsigned round = 0; round < 50; round++) {
        // With EVENT_IDX the last one is to interrupt, or the one after it, which does not come.
        const bool interrupts = round % 2 == 0;
        if (event_idx) {
            REQUIRE(queue.arm_interrupt(interrupts ? together : together + 1));
        } else if (interrupts) {
            REQUIRE(queue.arm_interrupt());
        } else {
            queue.disarm_interrupt();
        }
        for (unsigned i = 0; i < together; i++) {
            blk_request* request = guest.driver.acquire(0);
            REQUIRE(request != nullptr);
            guest.driver.shape(*request, blk_op::get_id, 0, data + uint64_t{i} * id_bytes,
                               id_bytes);
            REQUIRE(guest.driver.submit(*request));
        }
        guest.driver.ring(0);
        for (unsigned i = 0; i < together; i++) {
            blk_request& request = guest.driver.next();
            REQUIRE(request.ok());
            guest.driver.release(request);
        }
        // The interrupt follows what the guest sees in memory.
        uint64_t signals = take_eventfd(
            queue.call_fd(), deadline(interrupts ? default_timeout() : milliseconds(20)));
        usleep(1000);
        signals += take_eventfd(queue.call_fd(), deadline(milliseconds(0)));
        CHECK(signals == (interrupts ? 1 : 0));
    }
}

// bpf/examples/protect.bpf.c again, and what a poller's queue has to do with it.
TEST_CASE("a policy holds when the command returns, and is gone when it is taken away", "[.lane]") {
    lane_disk disk("lane = \"auto\"\n");
    test_guest guest(disk.daemon.device("d"));
    std::vector<std::byte> block(4096);
    constexpr uint64_t in_image = 8, behind_image = 8192;
    auto policy = [&](const nlohmann::json& object) {
        disk.daemon.control().result({{"op", "disk_policy"}, {"name", "d"}, {"object", object}});
    };
    // The daemon looks at rates once a second.
    auto load_until = [&](const std::string& lane) {
        for (deadline until(default_timeout()); disk.lane_name(0) != lane && !until.passed();) {
            for (unsigned n = 0; n < 100; n++) {
                REQUIRE(guest.driver.read(behind_image, block).status == blk_ok);
            }
        }
        REQUIRE(disk.lane_name(0) == lane);
    };
    const std::string object =
        std::filesystem::absolute(built_program("bpf/examples/protect.bpf.o"));
    for (unsigned round = 0; round < 5; round++) {
        INFO("round " << round);
        load_until("poll");
        REQUIRE(guest.driver.write(in_image, block).status == blk_ok);
        policy(object);
        REQUIRE(guest.driver.write(in_image, block).status == blk_ioerr);
        CHECK(disk.lane(0).at("why") == "has a policy");
        for (unsigned n = 0; n < 1000; n++) { // far above promote_iops
            REQUIRE(guest.driver.read(behind_image, block).status == blk_ok);
        }
        CHECK(disk.lane_name(0) == "kernel");
        policy(nullptr);
        REQUIRE(guest.driver.write(in_image, block).status == blk_ok);
    }
    load_until("poll");
}

// bpf/examples/protect.bpf.c. Requests of all shapes and sizes: what the kernel lane does not
// serve, it leaves to the daemon, and there a policy has to hold as well.
TEST_CASE("a policy holds for every request, whoever serves it", "[.lane]") {
    needs_vdpa_world();
    constexpr uint64_t half = 32 << 20;
    constexpr uint64_t is_protected = 4096; // sectors from here on may be written
    constexpr uint64_t hot = 2048, hot_end = 4096, copy = half / sector_bytes;
    constexpr uint64_t area = 8192;
    constexpr uint64_t most = 4096;
    const std::string mode = GENERATE("kernel", "auto");
    INFO("lane " << mode);
    test_storage storage;
    storage.add("image", half);
    storage.add("copy", half);
    test_daemon daemon(storage.targets() +
                       disk_of("d", "lane = \"" + mode + "\"\nextents = [ " +
                                        storage.extent("image", 0, half) + ", " +
                                        storage.extent("copy", 0, half) + " ]\n"));
    guest_options options;
    options.memory_bytes = 32 << 20;
    options.start = false;
    test_guest guest(daemon.device("d"), options);
    blk_driver& driver = guest.driver;
    random_source random(test_seed(2020));
    // Pages come to a guest in the order in which it touches them. In this one, hardly any two
    // neighbours are neighbours for a device: a large request is one of more pieces than the kernel
    // lane takes.
    std::vector<uint64_t> pages(options.memory_bytes / 4096);
    std::iota(pages.begin(), pages.end(), 0);
    random.shuffle(std::span(pages));
    for (uint64_t page : pages) {
        *driver.memory().at(page * 4096) = std::byte{0};
    }
    driver.start();
    std::vector<std::byte> image(area * sector_bytes), copied((hot_end - hot) * sector_bytes);
    random.fill(image);
    random.fill(copied);
    REQUIRE(driver.write(0, image).status == blk_ok);
    REQUIRE(driver.write(copy, copied).status == blk_ok);
    auto seen = image; // with the policy
    std::copy(copied.begin(), copied.end(), seen.begin() + hot * sector_bytes);

    const std::string object =
        std::filesystem::absolute(built_program("bpf/examples/protect.bpf.o"));
    daemon.control().result({{"op", "disk_policy"}, {"name", "d"}, {"object", object}});
    auto served = [&] {
        const auto list = daemon.control().result({{"op", "disk_list"}});
        const auto stats = daemon.control().result({{"op", "stats"}});
        uint64_t polled = 0;
        for (const auto& p : stats.at("pollers")) {
            polled += p.at("requests").get<uint64_t>();
        }
        return std::pair(list.at(0).at("lanes").at(0).at("kernel_requests").get<uint64_t>(),
                         polled);
    };
    const auto before = served();

    const arena place{driver.memory().allocate(arena::bytes_for(most * sector_bytes), 4096),
                      arena::bytes_for(most * sector_bytes)};
    auto part = [](std::vector<std::byte>& of, uint64_t first, uint64_t count) {
        return std::span(of).subspan(first * sector_bytes, count * sector_bytes);
    };
    std::vector<std::byte> data(most * sector_bytes);
    uint64_t refused = 0, elsewhere = 0;
    for (uint64_t left = scaled(1000, 300); left > 0; left--) {
        blk_request& r = *driver.acquire(0);
        const uint64_t count = random.between(1, random.chance(50) ? 8 : most);
        // Half of them about a border.
        const uint64_t border = random.chance(50) ? hot : hot_end;
        const uint64_t first =
            random.chance(50)
                ? random.below(area - count + 1)
                : std::min(border - std::min(border, random.below(count + 1)), area - count);
        const auto op = random.chance(60)   ? blk_op::read
                        : random.chance(80) ? blk_op::write
                                            : blk_op::write_zeroes;
        std::span<const std::byte> out;
        blk_range range{first, static_cast<uint32_t>(count), 0};
        r.type = static_cast<uint32_t>(op);
        r.sector = op == blk_op::write_zeroes ? 0 : first;
        if (op == blk_op::write) {
            out = std::span(data).first(count * sector_bytes);
            random.fill(std::span(data).first(count * sector_bytes));
        } else if (op == blk_op::write_zeroes) {
            out = bytes_of(range);
            std::fill(data.begin(), data.end(), std::byte{0});
        }
        r.indirect = random.chance(50);
        layout_options layout;
        layout.max_pieces = random.chance(50) ? 1 : 100;
        layout.misaligned = random.chance(50);
        layout.max_descriptors = r.indirect ? usual_segments : driver.options().queue_size;
        shape_randomly(random, driver.memory(), place, layout, r, out,
                       op == blk_op::read ? static_cast<uint32_t>(count * sector_bytes) : 0);
        const bool may = op == blk_op::read || first >= is_protected;
        INFO(describe(r) << ": type " << r.type << ", " << count << " sectors at " << first);
        REQUIRE(driver.execute(r).status == (may ? blk_ok : blk_ioerr));
        if (op == blk_op::read) {
            REQUIRE(compare_in(driver.memory(), r, part(seen, first, count)) ==
                    count * sector_bytes);
            elsewhere += first < hot_end && first + count > hot;
        } else if (may) {
            std::copy_n(data.begin(), count * sector_bytes, part(seen, first, count).begin());
            std::copy_n(data.begin(), count * sector_bytes, part(image, first, count).begin());
        }
        refused += !may;
        driver.release(r);
    }
    CHECK(refused > 20);
    CHECK(elsewhere > 20);
    const auto after = served();
    CHECK(after.first > before.first + 50);
    CHECK(after.second > before.second + 20); // of shapes that the kernel lane leaves alone

    // What is not the disk's is nobody's to give: reads that begin at sectors 1 to 512 are answered
    // so.
    const std::string beyond =
        std::filesystem::absolute(built_program("tests/vm/policies/beyond.bpf.o"));
    daemon.control().result({{"op", "disk_policy"}, {"name", "d"}, {"object", beyond}});
    for (uint64_t n = 0; n < 60; n++) {
        blk_request& r = *driver.acquire(0);
        const bool is_its_own = n % 3 == 0;
        const uint64_t count = random.between(1, n % 2 ? 8 : most);
        const uint64_t first =
            is_its_own ? random.between(513, area - count) : random.between(1, 512);
        r.type = static_cast<uint32_t>(blk_op::read);
        r.sector = first;
        layout_options layout;
        layout.max_pieces = 100;
        layout.max_descriptors = driver.options().queue_size;
        shape_randomly(random, driver.memory(), place, layout, r, {},
                       static_cast<uint32_t>(count * sector_bytes));
        INFO(describe(r) << ": " << count << " sectors at " << first);
        REQUIRE(driver.execute(r).status == (is_its_own ? blk_ok : blk_ioerr));
        driver.release(r);
    }
    const auto at_last = served();
    CHECK(at_last.first > after.first);
    CHECK(at_last.second > after.second + 5);

    daemon.control().result({{"op", "disk_policy"}, {"name", "d"}, {"object", nullptr}});
    std::vector<std::byte> rests(area * sector_bytes);
    REQUIRE(driver.read(0, rests).status == blk_ok);
    CHECK(rests == image);
    REQUIRE(driver.read(copy, std::span(rests).first(copied.size())).status == blk_ok);
    CHECK(std::equal(copied.begin(), copied.end(), rests.begin()));
}

TEST_CASE("queues that change hands thousands of times under load lose nothing", "[.lane]") {
    needs_vdpa_world();
    constexpr uint64_t half = disk_bytes / 2;
    test_storage storage;
    storage.add("t", half);
    storage.add_file("file", half); // whose requests are the daemon's
    test_daemon daemon(storage.targets() +
                       disk_of("d", "queues = 2\nlane = \"kernel\"\nextents = [ " +
                                        storage.extent("t", 0, half) + ", " +
                                        storage.extent("file", 0, half) + " ]\n"));
    guest_options options;
    options.blk.queues = 2;
    options.blk.depth = 16;
    test_guest guest(daemon.device("d"), options);
    std::vector<std::byte> model(disk_bytes);
    run_options mix;
    mix.max_bytes = 16384;
    model_run run(guest.driver, model, test_seed(2040), mix);
    // A completion of what is not in flight throws; what never completes times out.
    run.run(5000); // lane-auto counts the changes
    guest.driver.stop();
    CHECK(compare_backing(model, {storage.part("t"), storage.part("file")}) == disk_bytes);
}

TEST_CASE("a daemon is killed under load while the kernel has its queues, and comes back",
          "[.lane]") {
    const std::string mode = GENERATE("kernel", "auto");
    lane_disk disk("queues = 2\nlane = \"" + mode + "\"\n");
    guest_options options;
    options.blk.queues = 2;
    options.blk.depth = 24;
    options.memory_bytes = 256 << 20;
    test_guest guest(disk.daemon.device("d"), options);
    std::vector<std::byte> model(disk_bytes);
    random_source random(test_seed(2011));
    const run_options small = served_by_kernel();
    run_options mix;
    mix.max_bytes = 1 << 20; // what it cannot serve goes to the daemon, and the queue with it
    model_run run(guest.driver, model, test_seed(2010), mix);
    uint64_t in_kernel = 0;
    for (uint64_t round = scaled(20, 10); round > 0; round--) {
        INFO("lane " << mode << ", " << round << " rounds to go");
        run.set_options(random.below(2) ? mix : small);
        run.start(uint64_t{1} << 40);
        for (uint64_t steps = random.between(1, 60); steps > 0; steps--) {
            run.step();
        }
        usleep(static_cast<useconds_t>(random.below(500)));
        in_kernel += disk.lane(0).at("kernel_requests").get<uint64_t>() != 0;
        disk.daemon.kill();
        // Queues in the kernel lane go on, as far as they can.
        for (uint64_t steps = random.between(0, 20); steps > 0; steps--) {
            run.step();
        }
        disk.daemon.start();
        guest.daemon_is_back();
        // A completion of what is not in flight throws; what never completes times out.
        run.drain();
    }
    CHECK(in_kernel > 0);
    run.run(100);
    CHECK(compare_backing(model, {disk.storage.part("t")}) == disk_bytes);
}

TEST_CASE("a daemon that is told to stop leaves all queues with the kernel", "[.lane]") {
    lane_disk disk("queues = 2\nlane = \"auto\"\n");
    guest_options options;
    options.blk.queues = 2;
    options.blk.depth = 16;
    test_guest guest(disk.daemon.device("d"), options);
    std::vector<std::byte> model(disk_bytes);
    model_run run(guest.driver, model, test_seed(2030), served_by_kernel());
    for (unsigned round = 0; round < 3; round++) {
        INFO("round " << round);
        load_until_polled(disk, run);
        run.start(uint64_t{1} << 40); // and it is told so under load
        for (unsigned steps = 0; steps < 30; steps++) {
            run.step();
        }
        CHECK(disk.daemon.terminate() == 0);
        for (unsigned steps = 0; steps < 300; steps++) {
            run.step();
        }
        run.drain();
        disk.daemon.start();
        guest.daemon_is_back();
        run.run(100);
    }
    guest.driver.stop();
    CHECK(compare_backing(model, {disk.storage.part("t")}) == disk_bytes);
}

TEST_CASE("a daemon that cannot start leaves queues with the kernel", "[.lane]") {
    needs_vdpa_world();
    temporary_directory files("/dev/shm");
    const std::string image = files / "image";
    make_file(image, disk_bytes);
    test_storage storage;
    storage.add("t", disk_bytes);
    test_daemon daemon(storage.targets() + storage.disk("d", "t", "lane = \"kernel\"\n") +
                           file_target("locked", image) + disk_on("e", "locked"),
                       {"--strict"});
    test_guest guest(daemon.device("d"));
    daemon.kill();
    // All disks that can be served are, when it finds that one cannot.
    unique_fd in_use(open(image.c_str(), O_RDWR | O_CLOEXEC));
    REQUIRE(flock(in_use.get(), LOCK_EX) == 0); // when the killed one has let go
    REQUIRE_THROWS_WITH(daemon.start(), ContainsSubstring("ended at its start with status 1") &&
                                            ContainsSubstring("disk d: listening") &&
                                            ContainsSubstring(image));
    std::vector<std::byte> data(4096, std::byte{0x5a}), back(4096);
    REQUIRE(guest.driver.write(0, data).status == blk_ok);
    REQUIRE(guest.driver.read(0, back).status == blk_ok);
    CHECK(back == data);
    in_use.reset();
    daemon.start();
    guest.daemon_is_back();
    CHECK(daemon.entry("d").at("lanes").at(0).at("lane") == "kernel");
    CHECK(guest.driver.flush().status == blk_ok);
}

} // namespace vql::guest
