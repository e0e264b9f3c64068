// SPDX-License-Identifier: GPL-2.0-only
// One disk's storage that is not there, or hangs, is that disk's trouble and nobody else's.
#include "e2e.h"

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <fcntl.h>
#include <filesystem>
#include <future>
#include <linux/fs.h>
#include <linux/loop.h>
#include <nlohmann/json.hpp>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

// A small ext4 on a loop device, that can be frozen: then whatever would write to it hangs. Thawed
// and unmounted at the end; and thawed by a process that waits for ours to be gone, should it be
// killed, for who removes what it leaves would hang.
class freezable_folder {
  public:
    freezable_folder() {
        const std::string image = directory_ / "fs";
        make_file(image, 256 << 20);
        if (run_command({"mkfs.ext4", "-q", image}).status != 0)
            SKIP("no mkfs.ext4");
        const unique_fd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
        const int number = control ? ioctl(control.get(), LOOP_CTL_GET_FREE) : -1;
        if (number < 0)
            SKIP("no loop devices here: " << std::strerror(errno));
        const std::string device = "/dev/loop" + std::to_string(number);
        loop_ = unique_fd(open(device.c_str(), O_RDWR | O_CLOEXEC));
        const unique_fd file(open(image.c_str(), O_RDWR | O_CLOEXEC));
        if (!loop_ || ioctl(loop_.get(), LOOP_SET_FD, file.get()) < 0)
            SKIP("no loop device can be set up: " << std::strerror(errno));
        std::filesystem::create_directory(path());
        if (mount(device.c_str(), path().c_str(), "ext4", 0, nullptr) < 0) {
            const int err = errno;
            ioctl(loop_.get(), LOOP_CLR_FD, 0);
            SKIP("an ext4 on a loop device cannot be mounted: " << std::strerror(err));
        }
        folder_ = unique_fd(open(path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        watch();
    }
    ~freezable_folder() {
        thaw();
        alive_.reset();
        if (watcher_ > 0)
            waitpid(watcher_, nullptr, 0);
        folder_.reset();
        umount2(path().c_str(), MNT_DETACH);
        ioctl(loop_.get(), LOOP_CLR_FD, 0); // when the last user is gone
    }
    std::string path() const { return directory_ / "mnt"; }
    std::string operator/(const std::string& name) const { return path() + "/" + name; }
    void freeze() {
        REQUIRE(ioctl(folder_.get(), FIFREEZE, 0) == 0);
        frozen_ = true;
    }
    void thaw() {
        if (std::exchange(frozen_, false))
            ioctl(folder_.get(), FITHAW, 0);
    }

  private:
    void watch() {
        int ends[2];
        REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
        unique_fd theirs(ends[0]);
        alive_ = unique_fd(ends[1]);
        const pid_t child = fork();
        REQUIRE(child >= 0);
        if (child) {
            watcher_ = child;
            return;
        }
        close(alive_.get());
        setsid(); // it is not for who ends our group
        char none = 0;
        while (read(theirs.get(), &none, 1) < 0 && errno == EINTR) {
        }
        ioctl(folder_.get(), FITHAW, 0);
        _exit(0);
    }

    temporary_directory directory_;
    unique_fd loop_, folder_;
    unique_fd alive_; // closed, also when this process is killed
    pid_t watcher_ = 0;
    bool frozen_ = false;
};

// Until the daemon says that @disk is in @state.
void wait_state(const test_daemon& daemon, const std::string& disk, const std::string& state) {
    deadline until(default_timeout());
    for (;;) {
        const json e = daemon.entry(disk);
        if ((e.is_null() ? "gone" : e.at("state").get<std::string>()) == state)
            return;
        INFO(e.dump());
        REQUIRE_FALSE(until.passed());
        usleep(10000);
    }
}

// A request of which the reply comes when it comes.
std::future<json> ask(const test_daemon& daemon, const json& request) {
    return std::async(std::launch::async,
                      [&daemon, request] { return daemon.control().call(request); });
}

bool is_done(const std::future<json>& reply) {
    return reply.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

// So many seconds, more on a slow machine as all that waits.
std::chrono::milliseconds within(int64_t seconds) {
    return default_timeout() * seconds / 60;
}

// Does the daemon answer at once, and serve the disk of @guest?
void check_alive(const test_daemon& daemon, test_guest& guest) {
    const auto before = std::chrono::steady_clock::now();
    CHECK_FALSE(daemon.control().result({{"op", "disk_list"}}).empty());
    CHECK(guest.driver.flush().status == blk_ok);
    CHECK(std::chrono::steady_clock::now() - before < within(2));
}

} // namespace

TEST_CASE("a disk whose target is missing waits, and is served when it is there", "[storage]") {
    vhost_user_only only("its subject is the daemon's start, and the socket of a disk that waits");
    temporary_directory files("/dev/shm");
    const std::string image = files / "image";
    test_daemon daemon(file_target("t", image) + null_target("n", "1G") + disk_on("late", "t") +
                       disk_on("d", "n"));
    test_guest other(daemon.socket("d"));
    check_alive(daemon, other);
    const json waiting = daemon.entry("late");
    CHECK(waiting.at("state") == "waiting");
    CHECK_THAT(waiting.at("problem"),
               ContainsSubstring(image) && ContainsSubstring("No such file"));
    CHECK(waiting.at("socket") == daemon.socket("late"));
    // As after a daemon's death: a VMM that is to connect again cannot, and tries again.
    CHECK_FALSE(std::filesystem::exists(daemon.socket("late")));
    CHECK_THAT(daemon.control().error({{"op", "disk_resize"}, {"name", "late"}, {"size", 1 << 30}}),
               ContainsSubstring("not served") && ContainsSubstring(image));

    make_file(image, 16 << 20);
    wait_state(daemon, "late", "ready");
    CHECK(daemon.entry("late").at("problem") == "");
    CHECK(daemon.entry("late").at("size") == 16 << 20);
    test_guest guest(daemon.socket("late"));
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("a disk that waits can be removed, and stays removed", "[storage]") {
    vhost_user_only only("its subject is the daemon's start");
    temporary_directory files("/dev/shm");
    test_daemon daemon(file_target("t", files / "image") + disk_on("d", "t"));
    daemon.control().result({{"op", "disk_rm"}, {"name", "d"}});
    CHECK(daemon.control().result({{"op", "disk_list"}}).empty());
    make_file(files / "other", 16 << 20);
    // The configuration still has it: another one of its name would be gone with the next reload.
    CHECK_THAT(
        daemon.control().error({{"op", "disk_add"}, {"name", "d"}, {"file", files / "other"}}),
        ContainsSubstring("vqlane reload"));
    daemon.control().result({{"op", "disk_add"}, {"name", "o"}, {"file", files / "other"}});
    CHECK(daemon.entry("o").at("state") == "ready");
    // By command there is no waiting: it works, or it is refused.
    CHECK_THAT(
        daemon.control().error({{"op", "disk_add"}, {"name", "e"}, {"file", files / "none"}}),
        ContainsSubstring("No such file"));
    CHECK(daemon.entry("e").is_null());
}

TEST_CASE("a target in a device folder, or in one that is missing, is not to be made",
          "[storage]") {
    vhost_user_only only("its subject is a message");
    temporary_directory files("/dev/shm");
    test_daemon daemon(file_target("t", "/dev/vqlane-test-none") +
                       file_target("u", files / "none/image") + disk_on("d", "t") +
                       disk_on("e", "u"));
    CHECK(daemon.entry("d").at("problem").get<std::string>().find("truncate") == std::string::npos);
    CHECK(daemon.entry("e").at("problem").get<std::string>().find("truncate") == std::string::npos);
}

TEST_CASE("storage that hangs as a disk is added, grown or removed stops nobody else",
          "[storage]") {
    vhost_user_only only("its subject is the control thread");
    freezable_folder frozen;
    make_file(frozen / "a", 16 << 20);
    make_file(frozen / "b", 16 << 20);
    test_daemon daemon(file_target("t", frozen / "a") + null_target("n", "1G") +
                       disk_on("hung", "t") + disk_on("d", "n"));
    test_guest other(daemon.socket("d"));
    frozen.freeze();

    auto grown = ask(daemon, {{"op", "disk_resize"}, {"name", "hung"}, {"size", 32 << 20}});
    auto added = ask(daemon, {{"op", "disk_add"}, {"name", "more"}, {"file", frozen / "b"}});
    sleep(2);
    CHECK_FALSE(is_done(grown));
    check_alive(daemon, other);
    CHECK_THAT(daemon.entry("hung").at("problem"), ContainsSubstring(frozen / "a"));
    if (!is_done(added)) { // opening it wants to know whether it can punch holes
        CHECK(daemon.entry("more").at("state") == "opening");
        CHECK_THAT(daemon.entry("more").at("problem"), ContainsSubstring(frozen / "b"));
    }
    { // who asks, and goes, takes a disk that is being added with it
        control_client gone = daemon.control();
        gone.send_text(json({{"op", "disk_add"}, {"name", "gone"}, {"file", frozen / "c"}}).dump() +
                       "\n");
        usleep(100000);
    }
    test_guest second(daemon.socket("hung")); // a new connection, also there
    check_alive(daemon, other);

    auto removed = ask(daemon, {{"op", "disk_rm"}, {"name", "hung"}, {"force", true}});
    REQUIRE(removed.wait_for(within(8)) == std::future_status::ready);
    CHECK(removed.get().at("ok") == true);
    check_alive(daemon, other);

    frozen.thaw();
    CHECK(added.get().at("ok") == true);
    CHECK(grown.wait_for(default_timeout()) == std::future_status::ready);
    wait_state(daemon, "hung", "gone");
    wait_state(daemon, "gone", "gone");
    wait_state(daemon, "more", "ready");
    check_alive(daemon, other);
}

TEST_CASE("a daemon that is killed while storage hangs leaves everything else to the next",
          "[storage]") {
    vhost_user_only only("its subject is the control thread");
    freezable_folder frozen;
    make_file(frozen / "a", 16 << 20);
    make_file(frozen / "b", 16 << 20);
    temporary_directory files("/dev/shm");
    make_file(files / "c", 16 << 20);
    test_daemon daemon(file_target("t", frozen / "a") + file_target("u", files / "c") +
                       disk_on("hung", "t") + disk_on("d", "u"));
    {
        test_guest other(daemon.socket("d"));
        frozen.freeze();
        auto grown = ask(daemon, {{"op", "disk_resize"}, {"name", "hung"}, {"size", 32 << 20}});
        auto added = ask(daemon, {{"op", "disk_add"}, {"name", "more"}, {"file", frozen / "b"}});
        sleep(1);
        daemon.kill();
        CHECK_THROWS(grown.get());
        CHECK_THROWS(added.get());
    }
    daemon.start();
    test_guest other(daemon.socket("d"));
    check_alive(daemon, other);
    CHECK(daemon.entry("hung").at("state") != "ready");
    CHECK_THAT(daemon.entry("hung").at("problem"), ContainsSubstring(frozen / "a"));
    frozen.thaw();
    wait_state(daemon, "hung", "ready");
    check_alive(daemon, other);
}

TEST_CASE("a daemon that waits for storage at its start does what it is told meanwhile",
          "[storage]") {
    vhost_user_only only("its subject is the control thread");
    freezable_folder frozen;
    make_file(frozen / "a", 16 << 20);
    temporary_directory files("/dev/shm");
    make_file(files / "b", 16 << 20);
    make_file(files / "c", 16 << 20);
    test_daemon daemon(file_target("t", frozen / "a") + file_target("u", files / "b") +
                           disk_on("hung", "t") + disk_on("d", "u"),
                       {"--strict"}); // without it, it waits 2 s
    frozen.freeze();
    auto grown = ask(daemon, {{"op", "disk_resize"}, {"name", "hung"}, {"size", 32 << 20}});
    sleep(1);
    daemon.kill();
    CHECK_THROWS(grown.get());

    const size_t begun = daemon.log().size();
    daemon.begin();
    test_guest other(daemon.socket("d"));
    check_alive(daemon, other);
    CHECK(daemon.entry("hung").at("state") == "opening");
    daemon.control().result({{"op", "disk_add"}, {"name", "more"}, {"file", files / "c"}});
    CHECK(daemon.entry("more").at("state") == "ready");
    kill(daemon.pid(), SIGHUP);
    CHECK(daemon.wait_log("reload: done", begun));
    daemon.control().result({{"op", "disk_rm"}, {"name", "more"}});
    sleep(3);
    CHECK(daemon.log().find("info: ready:", begun) == std::string::npos);
    SECTION("it gets ready") {
        frozen.thaw();
        daemon.wait_ready();
        CHECK(daemon.entry("hung").at("size") == 32 << 20);
        check_alive(daemon, other);
    }
    SECTION("it ends") {
        CHECK(daemon.terminate() == 0);
        CHECK(daemon.log().find("info: ready:", begun) == std::string::npos);
    }
}

// More than a poller has requests, its engine has slots and bounce buffers, for all of its disks.
TEST_CASE("a guest's requests on storage that hangs keep no other disk waiting", "[storage]") {
    vhost_user_only only("its subject is the io_uring engine");
    // At odd addresses O_DIRECT does not take them: each needs a bounce buffer.
    const bool bouncing = GENERATE(false, true);
    constexpr unsigned queues = 6;
    constexpr uint16_t depth = 1024;
    freezable_folder frozen;
    make_file(frozen / "a", 64 << 20);
    temporary_directory files;
    make_file(files / "b", 64 << 20);
    test_daemon daemon(file_target("t", frozen / "a") + file_target("u", files / "b") +
                           disk_on("hung", "t", "queues = " + std::to_string(queues) + "\n") +
                           disk_on("d", "u"),
                       {"--pollers", "0"});
    test_guest other(daemon.socket("d"));
    {
        guest_options options;
        options.blk.queues = queues;
        options.blk.queue_size = depth;
        options.blk.depth = depth;
        options.memory_bytes = 128 << 20;
        test_guest guest(daemon.socket("hung"), options);
        REQUIRE(guest.driver.flush().status == blk_ok);
        const uint64_t data = guest.memory->allocate(8192) + (bouncing ? 8 : 0);
        frozen.freeze();
        for (unsigned q = 0; q < queues; q++) {
            for (unsigned i = 0; i < depth; i++) {
                blk_request* const r = guest.driver.acquire(q);
                if (!r)
                    break;
                guest.driver.shape(*r, blk_op::write, i * 8, data, 4096);
                r->indirect = true;
                REQUIRE(guest.driver.submit(*r));
            }
            guest.driver.ring(q);
        }
        usleep(300000);
        check_alive(daemon, other);
        std::vector<std::byte> noise(64 << 10, std::byte{0x5a}), back(noise.size());
        for (unsigned i = 0; i < 50; i++) {
            REQUIRE(other.driver.write(i * 128, noise).status == blk_ok);
            REQUIRE(other.driver.read(i * 128, back).status == blk_ok);
            REQUIRE(back == noise);
        }
        auto removed = ask(daemon, {{"op", "disk_rm"}, {"name", "hung"}, {"force", true}});
        REQUIRE(removed.wait_for(within(8)) == std::future_status::ready);
        CHECK(removed.get().at("ok") == true);
        CHECK(daemon.entry("hung").at("state") == "closing");
        check_alive(daemon, other);
        frozen.thaw();
        wait_state(daemon, "hung", "gone");
    }
    check_alive(daemon, other);
}

TEST_CASE("a daemon with I/O that hangs leaves what commands did, and others' files, to the next",
          "[storage]") {
    vhost_user_only only("its subject is the daemon's start and end");
    freezable_folder frozen;
    make_file(frozen / "a", 16 << 20);
    temporary_directory files("/dev/shm");
    make_file(files / "b", 16 << 20);
    make_file(files / "c", 16 << 20);
    const std::string config = file_target("t", frozen / "a") + file_target("u", files / "b") +
                               disk_on("hung", "t") + disk_on("d", "u");
    test_daemon daemon(config);
    daemon.control().result({{"op", "disk_add"}, {"name", "kept"}, {"file", files / "c"}});
    std::unique_ptr<test_guest> guest = std::make_unique<test_guest>(daemon.socket("hung"));
    struct thaw_first { // or what was killed never ends
        freezable_folder& folder;
        ~thaw_first() { folder.thaw(); }
    } const thaw{frozen};
    frozen.freeze();
    blk_request* const r = guest->driver.acquire(0);
    guest->driver.shape(*r, blk_op::write, 0, guest->memory->allocate(4096), 4096);
    REQUIRE(guest->driver.submit(*r));
    guest->driver.ring(0);
    usleep(200000);

    SECTION("killed") {
        daemon.kill_and_leave();
        daemon.start();
        CHECK(daemon.entry("kept").at("name") == "kept");
        make_file(files / "e", 16 << 20);
        daemon.control().result({{"op", "disk_add"}, {"name", "more"}, {"file", files / "e"}});
    }
    SECTION("told to end, as a disk is being removed by force") {
        auto removed = ask(daemon, {{"op", "disk_rm"}, {"name", "hung"}, {"force", true}});
        REQUIRE(removed.wait_for(within(8)) == std::future_status::ready);
        kill(daemon.pid(), SIGTERM);
        // The other disk's file is free while the daemon waits, and waiting costs nothing.
        const std::string file = files / "b";
        deadline until(default_timeout());
        const auto is_free = [&] {
            const unique_fd fd(open(file.c_str(), O_RDWR | O_CLOEXEC));
            return flock(fd.get(), LOCK_EX | LOCK_NB) == 0;
        };
        while (!is_free() && !until.passed())
            usleep(10000);
        CHECK(is_free());
        const auto before = daemon.cpu_time();
        sleep(1);
        CHECK(daemon.running());
        CHECK(daemon.cpu_time() - before < std::chrono::milliseconds(300));
    }
    frozen.thaw();
    guest.reset();
    daemon.terminate();
}

} // namespace vql::guest
