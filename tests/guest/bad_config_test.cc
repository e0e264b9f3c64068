// SPDX-License-Identifier: GPL-2.0-only
// A wrong configuration starts nothing, and its error names file, line, key and what was expected.
#include "e2e.h"

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;

namespace {

// A place to start a daemon in that shall not start.
struct failing_start : vhost_user_only {
    failing_start()
        : vhost_user_only("its subject is the daemon's configuration, and no guest takes part") {}

    temporary_directory directory;
    std::string config = directory / "vqlaned.toml";

    std::string run_dir() const { return directory / "run"; }
    std::string bpf_dir() const { return directory / "bpf"; }
    command_result start(const std::string& text, std::vector<std::string> more = {}) {
        write_text_file(config, text);
        std::filesystem::create_directory(run_dir());
        std::vector<std::string> arguments = {built_program("vqlaned"),
                                              "--config",
                                              config,
                                              "--run-dir",
                                              run_dir(),
                                              "--bpf-dir",
                                              bpf_dir(),
                                              "--bpf",
                                              "off",
                                              "--strict"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run_command(arguments);
    }
    // The lock file may stay: it is the lock on it that counts.
    bool left_nothing() const {
        for (const auto& entry : std::filesystem::directory_iterator(run_dir())) {
            if (entry.is_socket()) {
                return false;
            }
        }
        return !std::filesystem::exists(bpf_dir()) || std::filesystem::is_empty(bpf_dir());
    }
};

const std::string good_target = "[[target]]\nname = \"t\"\ntype = \"null\"\nsize = \"1G\"\n"; // 1-4
const std::string good_disk = "[[disk]]\nname = \"d\"\ntarget = \"t\"\n";                     // 5-7
const std::string two_files = "[[target]]\nname = \"a\"\ntype = \"null\"\nsize = \"1G\"\n"
                              "[[target]]\nname = \"b\"\ntype = \"null\"\nsize = \"1G\"\n"; // 1-8

struct bad_config {
    std::string text;
    int line;
    const char* key;      // as the error names it
    const char* expected; // part of what the error says then
};

const bad_config bad_configs[] = {
    {"[daemon\n", 1, "", ""},
    {"[daemon]\nrun_dir = \n", 2, "", ""},
    {"[daemon]\nspeed = 1\n", 2, "daemon.speed", "unknown"},
    {"[demon]\n", 1, "demon", "unknown"},
    {"[daemon]\nrun_dir = 5\n", 2, "daemon.run_dir", "string"},
    {"[daemon]\npollers = []\n", 2, "daemon.pollers", ""},
    {"[daemon]\npollers = 1\n", 2, "daemon.pollers", "array"},
    {"[daemon]\npollers = [\"x\"]\n", 2, "daemon.pollers", "integer"},
    {"[daemon]\npollers = [0, 0]\n", 2, "daemon.pollers", ""},
    {"[daemon]\npollers = [-1]\n", 2, "daemon.pollers", "between"},
    {"[daemon]\nbpf = \"maybe\"\n", 2, "daemon.bpf", "required"},
    {"[daemon]\nspin = \"never\"\n", 2, "daemon.spin", "always"},
    {"[daemon]\nspin_us = -1\n", 2, "daemon.spin_us", "between"},
    {"[daemon]\nlog_level = \"loud\"\n", 2, "daemon.log_level", "warning"},
    {"[[target]]\ntype = \"null\"\nsize = \"1G\"\n", 1, "target[0].name", "missing"},
    {"[[target]]\nname = \"t\"\n", 1, "target[0].type", "missing"},
    {"[[target]]\nname = \"t\"\ntype = \"tape\"\n", 3, "target[0].type", "uring"},
    {"[[target]]\nname = \"t\"\ntype = \"uring\"\n", 1, "target[0]", "path"},
    {"[[target]]\nname = \"t\"\ntype = \"null\"\n", 1, "target[0]", "size"},
    {"[[target]]\nname = \"t\"\ntype = \"null\"\nsize = \"1000\"\n", 4, "target[0].size", "512"},
    {"[[target]]\nname = \"t\"\ntype = \"null\"\nsize = \"1X\"\n", 4, "target[0].size", ""},
    {"[[target]]\nname = \"t\"\ntype = \"null\"\nsize = -512\n", 4, "target[0].size", ""},
    {"[[target]]\nname = \"a/b\"\ntype = \"null\"\nsize = \"1G\"\n", 2, "target[0].name", "63"},
    {good_target + good_target, 6, "target[1].name", "t"},
    {good_target + "[[disk]]\ntarget = \"t\"\n", 5, "disk[0].name", "missing"},
    {good_target + "[[disk]]\nname = \"d\"\n", 5, "disk[0]", "target"},
    {good_target + "[[disk]]\nname = \"\"\ntarget = \"t\"\n", 6, "disk[0].name", "63"},
    {good_target + "[[disk]]\nname = \"a b\"\ntarget = \"t\"\n", 6, "disk[0].name", "63"},
    {good_target + "[[disk]]\nname = \"" + std::string(64, 'n') + "\"\ntarget = \"t\"\n", 6,
     "disk[0].name", "63"},
    {good_target + "[[disk]]\nname = \"d\"\ntarget = \"u\"\n", 7, "disk[0].target", "u"},
    {good_target + good_disk + "queues = 0\n", 8, "disk[0].queues", "between 1 and 64"},
    {good_target + good_disk + "queues = 65\n", 8, "disk[0].queues", "between 1 and 64"},
    {good_target + good_disk + "queues = \"4\"\n", 8, "disk[0].queues", "integer"},
    {good_target + good_disk + "queue_size = 300\n", 8, "disk[0].queue_size",
     "300 is not a power of two between 2 and 1024"},
    {good_target + good_disk + "queue_size = 2048\n", 8, "disk[0].queue_size",
     "between 2 and 1024"},
    {good_target + good_disk + "queue_size = 1\n", 8, "disk[0].queue_size", "between 2 and 1024"},
    {good_target + good_disk + "read_only = 1\n", 8, "disk[0].read_only", "true or false"},
    {good_target + good_disk + "chunk_size = \"32K\"\n", 8, "disk[0].chunk_size", "power of two"},
    {good_target + good_disk + "chunk_size = \"96K\"\n", 8, "disk[0].chunk_size", "power of two"},
    {good_target + good_disk + "chunk_size = \"2G\"\n", 8, "disk[0].chunk_size", "power of two"},
    {good_target + good_disk + "socket_mode = \"rw\"\n", 8, "disk[0].socket_mode", "octal"},
    {good_target + good_disk + "socket = \"/" + std::string(108, 's') + "\"\n", 8, "disk[0].socket",
     "107"},
    {good_target + good_disk + "colour = \"red\"\n", 8, "disk[0].colour", "unknown"},
    {good_target + good_disk + "size = \"511\"\n", 8, "disk[0].size", "512"},
    {good_target + good_disk + "size = 0\n", 8, "disk[0].size", ""},
    {good_target + good_disk + "extents = []\n", 8, "disk[0].extents", ""},
    {two_files + "[[disk]]\nname = \"d\"\nextents = []\n", 11, "disk[0].extents", ""},
    {two_files + "[[disk]]\nname = \"d\"\nextents = [ { target = \"c\", offset = 0, length = "
                 "\"1G\" } ]\n",
     11, "disk[0].extents[0].target", "c"},
    {two_files + "[[disk]]\nname = \"d\"\nextents = [ { target = \"a\", offset = \"1K\", length = "
                 "\"64K\" }, { target = \"b\", offset = 0, length = \"64K\" } ]\n",
     11, "disk[0].extents", ""},
    {two_files + "[[disk]]\nname = \"d\"\nextents = [\n { target = \"a\", offset = 0, length = "
                 "\"64K\" },\n { target = \"b\", offset = 0, length = \"1K\", speed = 1 } ]\n",
     13, "disk[0].extents[1]", "unknown"},
};

} // namespace

TEST_CASE("each broken configuration is refused with file, line, key and expectation; nothing "
          "starts",
          "[config-file]") {
    for (const bad_config& bad : bad_configs) {
        INFO(bad.text);
        failing_start place;
        command_result result = place.start(bad.text);
        CHECK(result.status == 1);
        CHECK_THAT(result.err,
                   ContainsSubstring(place.config + ":" + std::to_string(bad.line) + ":"));
        CHECK_THAT(result.err, ContainsSubstring(bad.key));
        CHECK_THAT(result.err, ContainsSubstring(bad.expected));
        CHECK(place.left_nothing());
        // --check says the same.
        command_result checked = place.start(bad.text, {"--check"});
        CHECK(checked.status == 1);
        CHECK(checked.err == result.err);
        CHECK(place.left_nothing());
    }
}

TEST_CASE("--check of a good configuration says so and starts nothing", "[config-file]") {
    failing_start place;
    command_result result = place.start(good_target + good_disk, {"--check"});
    CHECK(result.status == 0);
    CHECK_THAT(result.out + result.err, ContainsSubstring(place.config + ": ok"));
    CHECK(place.left_nothing());
}

TEST_CASE("--check refuses whatever does not fit the machine, all of it", "[config-file]") {
    failing_start place;
    make_file(place.directory / "image", 16 << 20);
    std::filesystem::create_symlink(place.directory / "image", place.directory / "link");
    for (const char* name : {"image-q", "image-r"})
        write_text_file(place.directory / name,
                        std::string("QFI\xfb\0\0\0\3", 8) + std::string(1 << 20, '\0'));
    command_result result = place.start(
        "[daemon]\npollers = [0, 1023]\n" + file_target("a", place.directory / "image") +
            file_target("b", place.directory / "link") + file_target("c", "/nonexistent/x") +
            disk_on("d", "a", "size = \"17M\"\n") +
            disk_on("e", "c", "socket = \"" + place.run_dir() + "\"\n") +
            file_target("q", place.directory / "image-q") +
            file_target("r", place.directory / "image-r") + "format = \"raw\"\n",
        {"--check"});
    CHECK(result.status == 1);
    std::string said = result.err;
    for (const char* part :
         {":2: daemon.pollers[1]: CPU 1023 ", ":10: target[1].path: ", ":14: target[2].path: ",
          ":18: disk[0].size: ", ":23: disk[1].socket: ", ":28: target[3].path: "}) {
        INFO(said);
        const size_t at = said.find(place.config + part);
        REQUIRE(at != std::string::npos);
        said.erase(0, at + 1); // in the file's order
    }
    CHECK_THAT(said, ContainsSubstring("image-q: it looks like a qcow2 image"));
    CHECK_THAT(said, !ContainsSubstring("image-r"));
    CHECK(place.left_nothing());
}

TEST_CASE("tables in conf.d are served like those beside it", "[config-file]") {
    failing_start place;
    std::filesystem::create_directory(place.directory / "conf.d");
    write_text_file(place.directory / "conf.d/more.toml", good_target + good_disk);
    command_result result = place.start(good_target, {"--check"});
    CHECK(result.status == 1);
    CHECK_THAT(result.err,
               ContainsSubstring(place.directory / "conf.d/more.toml:2: target[0].name") &&
                   ContainsSubstring(place.config + ":2"));
    write_text_file(place.config, "");
    child_process child({built_program("vqlaned"), "--config", place.config, "--run-dir",
                         place.run_dir(), "--bpf", "off"},
                        place.directory / "log", place.directory / "log");
    test_guest guest(place.run_dir() + "/d.sock");
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("a FIFO among the configuration's files is refused, not waited for", "[config-file]") {
    failing_start place;
    const std::string folder = place.directory / "conf.d";
    std::filesystem::create_directory(folder);
    REQUIRE(mkfifo((folder + "/x.toml").c_str(), 0600) == 0);
    const command_result result = place.start(good_target + good_disk, {"--check"});
    CHECK(result.status == 1);
    CHECK_THAT(result.err, ContainsSubstring(folder + "/x.toml") && ContainsSubstring("FIFO"));
    // Nor is a folder that is a link to nowhere one that has no files.
    std::filesystem::remove_all(folder);
    std::filesystem::create_symlink("/nonexistent/conf.d", folder);
    CHECK(place.start(good_target + good_disk, {"--check"}).status == 1);
}

TEST_CASE("SIGHUP ends nothing, not even at the start", "[config-file]") {
    failing_start place;
    write_text_file(place.config, good_target + good_disk);
    std::filesystem::create_directory(place.run_dir());
    child_process child({built_program("vqlaned"), "--config", place.config, "--run-dir",
                         place.run_dir(), "--bpf", "off"},
                        place.directory / "log", place.directory / "log");
    test_guest guest(place.run_dir() + "/d.sock"); // waits for the socket
    for (int i = 0; i < 20; i++) {
        child.send_signal(SIGHUP);
        CHECK(guest.driver.flush().status == blk_ok);
    }
    CHECK(child.running());
    child.send_signal(SIGTERM);
    CHECK(child.wait() == 0);
}

TEST_CASE("a socket is for the group that is configured, after a restart too", "[config-file]") {
    vhost_user_only only("a vDPA device's node belongs to whom udev says");
    test_daemon daemon(null_target("n", "1G") + null_target("m", "1G") + null_target("o", "1G") +
                       disk_on("d", "n", "socket_group = 64055\n") +
                       disk_on("e", "m",
                               "socket_group = 64055\nsocket_user = 64056\n" +
                                   std::string("socket_mode = \"0620\"\n")) +
                       disk_on("f", "o", "socket_mode = \"0660\"\n"));
    const auto of = [&daemon](const std::string& disk) {
        struct stat info {};
        REQUIRE(stat(daemon.socket(disk).c_str(), &info) == 0);
        return std::array<unsigned, 3>{info.st_uid, info.st_gid, info.st_mode & 0777};
    };
    for (int round = 0; round < 2; round++) {
        CHECK(of("d") == std::array<unsigned, 3>{geteuid(), 64055, 0660});
        CHECK(of("e") == std::array<unsigned, 3>{64056, 64055, 0620});
        CHECK(of("f") == std::array<unsigned, 3>{geteuid(), round ? 64057 : getegid(), 0660});
        CHECK(daemon.log().find("cannot enter") == std::string::npos);
        test_guest guest(daemon.socket("e"));
        CHECK(guest.driver.flush().status == blk_ok);
        daemon.kill();
        // The next one finds a folder whose group new sockets have.
        REQUIRE(chown(daemon.run_dir().c_str(), geteuid(), 64057) == 0);
        REQUIRE(chmod(daemon.run_dir().c_str(), 02751) == 0);
        daemon.start();
    }
    // A folder that only root can enter makes a group useless, which is said.
    daemon.kill();
    REQUIRE(chmod(daemon.run_dir().c_str(), 0700) == 0);
    daemon.start();
    CHECK(daemon.wait_log("disk d: its socket's group cannot enter " + daemon.run_dir()));
}

TEST_CASE("the run directory that the daemon makes can be entered under any umask",
          "[config-file]") {
    failing_start place;
    write_text_file(place.config, good_target + good_disk);
    child_process child({"/bin/sh", "-c", "umask 077; exec \"$@\"", "sh", built_program("vqlaned"),
                         "--config", place.config, "--run-dir", place.run_dir(), "--bpf", "off"},
                        place.directory / "log", place.directory / "log");
    test_guest guest(place.run_dir() + "/d.sock");
    CHECK((std::filesystem::status(place.run_dir()).permissions() &
           std::filesystem::perms::others_exec) != std::filesystem::perms::none);
}

TEST_CASE("a configuration or a target that is not there is named", "[config-file]") {
    failing_start place;
    command_result result = run_command({built_program("vqlaned"), "--config", "/nonexistent/x"});
    CHECK(result.status == 1);
    CHECK_THAT(result.err, ContainsSubstring("/nonexistent/x"));
    CHECK_THAT(result.err, ContainsSubstring("No such file"));

    std::string missing = place.directory / "missing.img";
    result = place.start(file_target("t", missing) + disk_on("d", "t"));
    CHECK(result.status == 1);
    CHECK_THAT(result.err, ContainsSubstring(missing));
    CHECK_THAT(result.err, ContainsSubstring("No such file"));
    CHECK(place.left_nothing());

    result = place.start(file_target("t", "/dev/zero") + disk_on("d", "t"));
    CHECK(result.status == 1);
    CHECK_THAT(result.err, ContainsSubstring("/dev/zero"));
    CHECK(place.left_nothing());
}

TEST_CASE("a wrong command line is a usage error", "[config-file]") {
    for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--nonsense"},
                                                      {"--config"},
                                                      {"--spin", "sometimes"},
                                                      {"--bpf", "maybe"},
                                                      {"--pollers", "x"},
                                                      {"--log-level", "loud"}}) {
        INFO(arguments.front());
        std::vector<std::string> all = {built_program("vqlaned")};
        all.insert(all.end(), arguments.begin(), arguments.end());
        command_result result = run_command(all);
        CHECK(result.status == 2);
        CHECK_FALSE(result.err.empty());
    }
}

TEST_CASE("a target that another daemon serves is refused, and that one goes on", "[config-file]") {
    failing_start place;
    temporary_directory files("/dev/shm");
    make_file(files / "image", 16 << 20);
    std::string config = file_target("t", files / "image") + disk_on("d", "t");
    test_daemon first(config);
    test_guest guest(first.socket("d"));
    command_result result = place.start(config);
    CHECK(result.status == 1);
    CHECK_THAT(result.err, ContainsSubstring(files / "image"));
    CHECK_THAT(result.err, ContainsSubstring("in use"));
    CHECK(place.left_nothing());
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("a run directory that another daemon has is refused, and that one goes on",
          "[config-file]") {
    failing_start place;
    test_daemon first(null_target("t", "1G") + disk_on("d", "t"));
    write_text_file(place.config, null_target("t", "1G") + disk_on("e", "t"));
    command_result result =
        run_command({built_program("vqlaned"), "--config", place.config, "--run-dir",
                     first.run_dir(), "--bpf-dir", place.bpf_dir(), "--bpf", "off"});
    CHECK(result.status == 1);
    CHECK_THAT(result.err, ContainsSubstring(first.run_dir()));
    CHECK(first.control().result({{"op", "disk_list"}}).size() == 1);
    test_guest guest(first.socket("d"));
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("disks that would share a part of a target are refused", "[config-file]") {
    std::string extent_of = "[[disk]]\nname = \"NAME\"\nextents = [ { target = \"t\", offset = "
                            "\"OFFSET\", length = \"128M\" } ]\n";
    auto disk_at = [&extent_of](const std::string& name, const std::string& offset) {
        std::string text = extent_of;
        text.replace(text.find("NAME"), 4, name);
        text.replace(text.find("OFFSET"), 6, offset);
        return text;
    };
    for (const std::string& config :
         {good_target + good_disk + "[[disk]]\nname = \"e\"\ntarget = \"t\"\n",
          good_target + disk_at("d", "0") + disk_at("e", "64M"),
          good_target + disk_at("d", "64M") + disk_at("e", "0"),
          good_target + good_disk + disk_at("e", "0")}) {
        INFO(config);
        failing_start place;
        command_result result = place.start(config);
        CHECK(result.status == 1);
        CHECK_THAT(result.err, ContainsSubstring("d") && ContainsSubstring("e"));
        CHECK_THAT(result.err, ContainsSubstring("overlap"));
        CHECK(place.left_nothing());
        command_result checked = place.start(config, {"--check"});
        CHECK(checked.status == 1);
        CHECK(checked.err == result.err);
    }
    test_daemon daemon(good_target + disk_at("d", "0") + disk_at("e", "128M"));
    CHECK(daemon.control().result({{"op", "disk_list"}}).size() == 2);
}

TEST_CASE("a disk larger than its target is refused", "[config-file]") {
    failing_start place;
    make_file(place.directory / "image", 16 << 20);
    command_result result = place.start(file_target("t", place.directory / "image") +
                                        disk_on("d", "t", "size = \"17M\"\n"));
    CHECK(result.status == 1);
    CHECK_THAT(result.err, ContainsSubstring("17825792") || ContainsSubstring("17M"));
    CHECK(place.left_nothing());
}

TEST_CASE("bpf = \"required\" without a BPF file system is refused, \"auto\" goes without and says "
          "so once",
          "[config-file]") {
    failing_start place;
    std::filesystem::create_directory(place.bpf_dir());
    write_text_file(place.config, good_target + good_disk);
    std::filesystem::create_directory(place.run_dir());
    std::string not_bpf = place.bpf_dir() + "/vqlane";
    command_result result =
        run_command({built_program("vqlaned"), "--config", place.config, "--run-dir",
                     place.run_dir(), "--bpf-dir", not_bpf, "--bpf", "required"});
    CHECK(result.status == 1);
    CHECK_THAT(result.err, ContainsSubstring(not_bpf));
    CHECK(place.left_nothing());

    test_daemon daemon(good_target + good_disk, {"--bpf-dir", not_bpf, "--bpf", "auto"});
    std::string log = daemon.log();
    size_t said = log.find("without BPF maps");
    CHECK(said != std::string::npos);
    CHECK(log.find("without BPF maps", said + 1) == std::string::npos);
    CHECK_THAT(log, ContainsSubstring(not_bpf));
    test_guest guest(daemon.socket("d"));
    CHECK(guest.driver.flush().status == blk_ok);
    CHECK(daemon.control().result({{"op", "stats"}}).at("disks").size() == 1);
}

TEST_CASE("the daemon tells systemd that it is ready when its sockets listen", "[config-file]") {
    failing_start place;
    write_text_file(place.config, good_target + good_disk);
    std::filesystem::create_directory(place.run_dir());
    unique_fd notify(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::string path = place.directory / "notify";
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    REQUIRE(bind(notify.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    child_process child({built_program("vqlaned"), "--config", place.config, "--run-dir",
                         place.run_dir(), "--bpf", "off"},
                        place.directory / "log", place.directory / "log",
                        {"NOTIFY_SOCKET=" + path});
    std::string told;
    deadline until(default_timeout());
    while (told.find("READY=1") == std::string::npos) {
        INFO(told);
        REQUIRE(wait_readable(notify.get(), until));
        std::array<char, 4096> text;
        ssize_t bytes = recv(notify.get(), text.data(), text.size(), 0);
        REQUIRE(bytes > 0);
        told.append(text.data(), static_cast<size_t>(bytes)).append("\n");
    }
    CHECK(std::filesystem::is_socket(place.run_dir() + "/d.sock"));
    CHECK(std::filesystem::is_socket(place.run_dir() + "/control.sock"));
    test_guest guest(place.run_dir() + "/d.sock");
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("SIGTERM and SIGINT end the daemon with status 0 and leave no socket", "[config-file]") {
    for (int signal : {SIGTERM, SIGINT}) {
        INFO("signal " << signal);
        failing_start place;
        write_text_file(place.config, good_target + good_disk);
        std::filesystem::create_directory(place.run_dir());
        child_process child({built_program("vqlaned"), "--config", place.config, "--run-dir",
                             place.run_dir(), "--bpf", "off"},
                            place.directory / "log", place.directory / "log");
        std::string socket = place.run_dir() + "/d.sock";
        {
            test_guest guest(socket);
            CHECK(guest.driver.flush().status == blk_ok);
            child.send_signal(signal);
            CHECK(child.wait() == 0);
        }
        CHECK_FALSE(std::filesystem::exists(socket));
        CHECK_FALSE(std::filesystem::exists(place.run_dir() + "/control.sock"));
    }
}

} // namespace vql::guest
