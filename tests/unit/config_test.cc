// SPDX-License-Identifier: GPL-2.0-only
#include "config_text.h"

#include "daemon/config.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <nlohmann/json.hpp>

namespace {

using nlohmann::json;
using vql::config;
using namespace vql::test;

const std::string example = VQL_SOURCE_DIR "/scripts/vqlaned.toml";

std::string request_refusal(const json& request) {
    std::vector<vql::target_config> own;
    auto parsed = vql::parse_disk(request, own);
    return parsed ? "(valid)" : parsed.failure().text;
}

TEST_CASE("a vdpa disk's queues go where the load wants them, unless it says a lane", "[config]") {
    const std::string vdpa = "[[target]]\nname = \"t\"\ntype = \"null\"\nsize = \"1M\"\n"
                             "[[disk]]\nname = \"d\"\ntarget = \"t\"\nfrontend = \"vdpa\"\n";
    auto silent = load(vdpa);
    REQUIRE(silent);
    CHECK(silent->disks[0].lane == vql::lane_mode::automatic);
    auto poll = load(vdpa + "lane = \"poll\"\n");
    REQUIRE(poll);
    CHECK(poll->disks[0].lane == vql::lane_mode::poll);
}

TEST_CASE("an empty file is a valid configuration, all defaults", "[config]") {
    auto c = load("");
    REQUIRE(c);
    CHECK(c->run_dir == "/run/vqlane");
    CHECK(c->bpf_dir == "/sys/fs/bpf/vqlane");
    CHECK(c->bpf == vql::bpf_mode::automatic);
    CHECK(c->pollers.empty());
    CHECK(c->spin_us == 50);
    CHECK_FALSE(c->spin_always);
    CHECK(c->register_memory == vql::memory_registration::automatic);
    CHECK(c->level == vql::log_level::info);
    CHECK(c->targets.empty());
    CHECK(c->disks.empty());
}

TEST_CASE("each key reaches its field", "[config]") {
    auto c = load(R"(
        [daemon]
        run_dir = "/r"
        bpf_dir = "/b"
        bpf = "required"
        pollers = [0, 1023]
        spin = "always"
        register_memory = "never"
        log_level = "debug"
        [[target]]
        name = "t0"
        type = "uring"
        path = "/dev/x"
        [[target]]
        name = "t1"
        type = "null"
        size = 1024
        [[target]]
        name = "t2"
        type = "null"
        size = "1M"
        [[disk]]
        name = "whole"
        target = "t0"
        [[disk]]
        name = "parts"
        extents = [ { target = "t1", offset = "128K", length = 65536 }, { target = "t2" } ]
        size = "1M"
        chunk_size = "64K"
        read_only = true
        discard = false
        queues = 64
        queue_size = 1024
        socket = "/s"
        socket_mode = "0666"
    )");
    REQUIRE(c);
    CHECK(c->run_dir == "/r");
    CHECK(c->bpf_dir == "/b");
    CHECK(c->bpf == vql::bpf_mode::required);
    CHECK(c->pollers == std::vector<int>{0, 1023});
    CHECK(c->spin_always);
    CHECK(c->register_memory == vql::memory_registration::never);
    CHECK(c->level == vql::log_level::debug);
    REQUIRE(c->targets.size() == 3);
    CHECK(c->targets[0].name == "t0");
    CHECK(c->targets[0].type == vql::target_type::uring);
    CHECK(c->targets[0].path == "/dev/x");
    CHECK(c->targets[1].type == vql::target_type::null);
    CHECK(c->targets[1].bytes == 1024);
    REQUIRE(c->disks.size() == 2);

    const vql::disk_config& whole = c->disks[0];
    REQUIRE(whole.extents.size() == 1);
    CHECK(whole.extents[0].target == "t0");
    CHECK(whole.extents[0].offset == 0);
    CHECK(whole.extents[0].length == 0);
    CHECK(whole.bytes == 0);
    CHECK(whole.chunk_bytes == 0);
    CHECK_FALSE(whole.read_only);
    CHECK(whole.discard);
    CHECK(whole.queues == 1);
    CHECK(whole.queue_size == 1024);
    CHECK(whole.socket.empty());
    CHECK(whole.mode_of_socket() == 0600);

    const vql::disk_config& parts = c->disks[1];
    REQUIRE(parts.extents.size() == 2);
    CHECK(parts.extents[0].target == "t1");
    CHECK(parts.extents[0].offset == 131072);
    CHECK(parts.extents[0].length == 65536);
    CHECK(parts.extents[1].target == "t2");
    CHECK(parts.bytes == 1 << 20);
    CHECK(parts.chunk_bytes == 65536);
    CHECK(parts.read_only);
    CHECK_FALSE(parts.discard);
    CHECK(parts.queues == 64);
    CHECK(parts.queue_size == 1024);
    CHECK(parts.socket == "/s");
    CHECK(parts.socket_mode == 0666);
}

TEST_CASE("the example configuration in scripts is valid", "[config]") {
    auto c = load_path(example);
    INFO((c ? "" : c.failure().text));
    REQUIRE(c);
    CHECK(c->disks.size() == 2);
}

TEST_CASE("a commented-out key of the example shows its default", "[config]") {
    std::ifstream lines(example);
    std::string daemon = "[daemon]\n", disk_keys = "target = \"t\"\n", line;
    for (std::string* section = &daemon; std::getline(lines, line);) {
        if (line == "[[disk]]")
            section = &disk_keys;
        for (const char* key : {"run_dir", "bpf_dir", "bpf", "register_memory", "log_level",
                                "queue_size", "read_only", "discard", "socket_mode"})
            if (line.rfind("# " + std::string(key) + " = ", 0) == 0)
                *section += line.substr(2) + "\n";
    }
    auto c = load(daemon + disk(disk_keys));
    INFO(daemon + disk_keys);
    INFO((c ? "" : c.failure().text));
    REQUIRE(c);
    CHECK(std::count(daemon.begin(), daemon.end(), '\n') == 6);
    CHECK(std::count(disk_keys.begin(), disk_keys.end(), '\n') == 5);
    const config defaults;
    const vql::disk_config disk_defaults;
    CHECK(c->run_dir == defaults.run_dir);
    CHECK(c->bpf_dir == defaults.bpf_dir);
    CHECK(c->bpf == defaults.bpf);
    CHECK(c->register_memory == defaults.register_memory);
    CHECK(c->level == defaults.level);
    CHECK(c->disks[0].queue_size == disk_defaults.queue_size);
    CHECK(c->disks[0].read_only == disk_defaults.read_only);
    CHECK(c->disks[0].discard == disk_defaults.discard);
    CHECK(c->disks[0].mode_of_socket() == disk_defaults.mode_of_socket());
}

TEST_CASE("a file that cannot be read is named with the reason", "[config]") {
    auto missing = load_path("/nonexistent/vqlaned.toml");
    REQUIRE_FALSE(missing);
    CHECK(missing.failure().text == "/nonexistent/vqlaned.toml: No such file or directory");
    auto folder = load_path("/");
    REQUIRE_FALSE(folder);
    CHECK(folder.failure().text == "/: Is a directory");
    auto endless = load_path("/dev/zero");
    REQUIRE_FALSE(endless);
    CHECK(endless.failure().text == "/dev/zero: larger than 16 MiB, expected a configuration file");
}

TEST_CASE("a syntax error names line and column", "[config]") {
    CHECK(refusal("[daemon]\nbpf = \n").rfind("FILE:2:7: Error while parsing", 0) == 0);
    CHECK(refusal("[daemon]\nspin_us = 99999999999999999999\n").rfind("FILE:2:31: ", 0) == 0);
    CHECK(refusal("[daemon]\nspin_us = 1\nspin_us = 2\n").rfind("FILE:3:", 0) == 0);
    CHECK(refusal("[daemon]\nrun_dir = \"\xff\"\n").rfind("FILE:2:", 0) == 0);
}

TEST_CASE("an unknown key is named with those that are known", "[config]") {
    const std::string known =
        " (known: name, target, file, format, extents, size, chunk_size, read_only, serial, "
        "discard, "
        "queues, queue_size, frontend, lane, socket, socket_mode, "
        "socket_user, socket_group)";
    check_refused({
        {"[demon]\n", "FILE:1: demon: unknown key (known: daemon, target, disk)"},
        {"\n[daemon]\npollrs = [1]\n", "FILE:3: daemon.pollrs: unknown key (known: run_dir, "
                                       "state_dir, bpf_dir, bpf, pollers, spin_us, spin, "
                                       "register_memory, allow_untranslated_dma, promote_iops, "
                                       "demote_iops, log_level)"},
        {"[[target]]\nname = \"t\"\ntype = \"null\"\nsize = 512\nfile = \"x\"\n",
         "FILE:5: target[0].file: unknown key (known: name, type, path, format, size, device, "
         "namespace)"},
        {disk("target = \"t\"\nqueue = 1"), "FILE:8: disk[0].queue: unknown key" + known},
        {disk("extents = [\n{ target = \"t\" },\n{ target = \"t\", len = 1 },\n]"),
         "FILE:9: disk[0].extents[1].len: unknown key (known: target, offset, length)"},
        {disk("target = \"t\"\nop = \"x\""), "FILE:8: disk[0].op: unknown key" + known},
    });
}

TEST_CASE("a missing key has the line of its table", "[config]") {
    check_refused({
        {"\n[[target]]\ntype = \"null\"\nsize = 512\n",
         "FILE:2: target[0].name: missing, it has no default"},
        {"\n[[target]]\nname = \"a\"\n", "FILE:2: target[0].type: missing, it has no default"},
        {disk("target = \"t\"\n[[disk]]\nfile = \"/x\""),
         "FILE:8: disk[1].name: missing, it has no default"},
        {disk(""), "FILE:5: disk[0]: expected target, file or extents"},
        {disk("extents = [\n{ offset = 0 } ]"),
         "FILE:8: disk[0].extents[0].target: missing, it has no default"},
    });
}

TEST_CASE("a value of the wrong type is told which one is expected", "[config]") {
    check_refused({
        {"daemon = 1\n", "FILE:1: daemon: expected a table"},
        {"[target]\nname = \"x\"\n", "FILE:1: target: expected an array of tables"},
        {"disk = [ 1 ]\n", "FILE:1: disk[0]: expected a table"},
        {"[daemon]\nrun_dir = 1\n", "FILE:2: daemon.run_dir: expected a string"},
        {"[daemon]\nrun_dir = 1979-05-27\n", "FILE:2: daemon.run_dir: expected a string"},
        {"[daemon]\nbpf = 1979-05-27\n",
         "FILE:2: daemon.bpf: this value is not one of \"auto\", \"required\", \"off\""},
        {"[daemon]\nspin_us = \"50\"\n",
         "FILE:2: daemon.spin_us: expected an integer, between 0 and 1000000"},
        {"[daemon]\nspin_us = 1.5\n",
         "FILE:2: daemon.spin_us: expected an integer, between 0 and 1000000"},
        {"[daemon]\npollers = 3\n",
         "FILE:2: daemon.pollers: expected an array of 1 to 64 CPU numbers"},
        {"[daemon]\npollers = [\n\"3\" ]\n",
         "FILE:3: daemon.pollers[0]: expected an integer, between 0 and 1023"},
        {disk("target = 5"), "FILE:7: disk[0].target: expected a string"},
        {disk("target = \"t\"\nread_only = \"no\""),
         "FILE:8: disk[0].read_only: expected true or false"},
        {disk("target = \"t\"\nread_only = 0"),
         "FILE:8: disk[0].read_only: expected true or false"},
        {disk("target = \"t\"\nsize = 1.5"),
         "FILE:8: disk[0].size: expected a size: bytes, or a string like \"10G\""},
        {disk("target = \"t\"\nsize = true"),
         "FILE:8: disk[0].size: expected a size: bytes, or a string like \"10G\""},
        {disk("extents = \"t\""), "FILE:7: disk[0].extents: expected an array of tables"},
        {disk("target = \"t\"\nsocket_mode = 660"),
         "FILE:8: disk[0].socket_mode: 660 is not a file mode, expected an octal string like "
         "\"0660\""},
        {disk("target = \"t\"\n[[disk]]\nfile = \"/x\"\nname = 1979-05-27"),
         "FILE:10: disk[1].name: expected a string"},
    });
}

TEST_CASE("a value out of range is told the range", "[config]") {
    const std::string queues = " is not between 1 and 64";
    const std::string queue_size = " is not a power of two between 2 and 1024";
    const std::string chunk = " is not a power of two between 64K and 1G";
    const auto of_disk = [](const std::string& key, const std::string& value) {
        return disk("target = \"t\"\n" + key + " = " + value);
    };
    check_refused({
        {"[daemon]\nspin_us = -1\n", "FILE:2: daemon.spin_us: -1 is not between 0 and 1000000"},
        {"[daemon]\nspin_us = 1000001\n",
         "FILE:2: daemon.spin_us: 1000001 is not between 0 and 1000000"},
        {"[daemon]\nspin = \"often\"\n", "FILE:2: daemon.spin: \"often\" is not one of \"always\""},
        {"[daemon]\nregister_memory = true\n",
         "FILE:2: daemon.register_memory: true is not one of \"auto\", \"always\", \"never\""},
        {"[daemon]\nlog_level = \"loud\"\n",
         "FILE:2: daemon.log_level: \"loud\" is not one of \"error\", \"warning\", \"info\", "
         "\"debug\""},
        {"[daemon]\npollers = []\n",
         "FILE:2: daemon.pollers: expected an array of 1 to 64 CPU numbers"},
        {"[daemon]\npollers = [1, 1024]\n",
         "FILE:2: daemon.pollers[1]: 1024 is not between 0 and 1023"},
        {"[daemon]\npollers = [-1]\n", "FILE:2: daemon.pollers[0]: -1 is not between 0 and 1023"},
        {"[daemon]\npollers = [3, 4, 3]\n",
         "FILE:2: daemon.pollers[2]: CPU 3 is in the list already"},
        {of_disk("queues", "0"), "FILE:8: disk[0].queues: 0" + queues},
        {of_disk("queues", "65"), "FILE:8: disk[0].queues: 65" + queues},
        {of_disk("queues", "-1"), "FILE:8: disk[0].queues: -1" + queues},
        {of_disk("queues", "4294967297"), "FILE:8: disk[0].queues: 4294967297" + queues},
        {of_disk("queue_size", "300"), "FILE:8: disk[0].queue_size: 300" + queue_size},
        {of_disk("queue_size", "1"), "FILE:8: disk[0].queue_size: 1" + queue_size},
        {of_disk("queue_size", "0"), "FILE:8: disk[0].queue_size: 0" + queue_size},
        {of_disk("queue_size", "2048"), "FILE:8: disk[0].queue_size: 2048" + queue_size},
        {of_disk("queue_size", "4294967298"),
         "FILE:8: disk[0].queue_size: 4294967298" + queue_size},
        {of_disk("chunk_size", "\"32K\""), "FILE:8: disk[0].chunk_size: \"32K\"" + chunk},
        {of_disk("chunk_size", "\"2G\""), "FILE:8: disk[0].chunk_size: \"2G\"" + chunk},
        {of_disk("chunk_size", "\"96K\""), "FILE:8: disk[0].chunk_size: \"96K\"" + chunk},
        {of_disk("chunk_size", "0"), "FILE:8: disk[0].chunk_size: 0" + chunk},
        {of_disk("size", "0"), "FILE:8: disk[0].size: 0 is not a size, expected 512 bytes or more"},
        {of_disk("size", "1000"), "FILE:8: disk[0].size: 1000 is not a multiple of 512 bytes"},
        {of_disk("size", "-512"), "FILE:8: disk[0].size: \"-512\" is not a size, expected bytes or "
                                  "a number with K, M, G or T"},
        {of_disk("size", "\"3E\""), "FILE:8: disk[0].size: \"3E\" is not a size, expected bytes or "
                                    "a number with K, M, G or T"},
        {of_disk("size", "\"2000000T\""),
         "FILE:8: disk[0].size: 2000000T is too large, expected at most 2^60 bytes"},
        {of_disk("socket_mode", "\"0680\""),
         "FILE:8: disk[0].socket_mode: \"0680\" is not a file mode, expected an octal string like "
         "\"0660\""},
        {of_disk("socket_mode", "\"4755\""),
         "FILE:8: disk[0].socket_mode: \"4755\" is not a file mode, expected an octal string like "
         "\"0660\""},
        {of_disk("socket_mode", "\"66\""),
         "FILE:8: disk[0].socket_mode: \"66\" is not a file mode, expected an octal string like "
         "\"0660\""},
    });
}

TEST_CASE("the ends of each range are valid", "[config]") {
    for (const char* text :
         {"[daemon]\nspin_us = 0", "[daemon]\nspin_us = 1000000", "[daemon]\npollers = [1023, 0]"})
        CHECK(refusal(text) == "(valid)");
    for (const char* line :
         {"queues = 1", "queues = 64", "queue_size = 2", "queue_size = 1024",
          "chunk_size = \"64K\"", "chunk_size = \"1G\"", "size = 512", "size = \"1048576T\"",
          "socket_mode = \"0777\"", "socket_mode = \"600\"", "read_only = true"}) {
        INFO(line);
        CHECK(refusal(disk("target = \"t\"\n" + std::string(line))) == "(valid)");
    }
}

TEST_CASE("keys that exclude or need each other are told so", "[config]") {
    check_refused({
        {"[daemon]\nspin_us = 5\nspin = \"always\"\n",
         "FILE:3: daemon.spin: spin_us is given too, expected one of the two"},
        {"[[target]]\nname = \"a\"\ntype = \"uring\"\n",
         "FILE:1: target[0].path: missing, a uring target needs it"},
        {"[[target]]\nname = \"a\"\ntype = \"uring\"\npath = \"/a\"\nsize = \"1G\"\n",
         "FILE:5: target[0].size: not for a uring target, which needs path"},
        {"[[target]]\nname = \"a\"\ntype = \"null\"\n",
         "FILE:1: target[0].size: missing, a null target needs it"},
        {"[[target]]\nname = \"a\"\ntype = \"null\"\nsize = \"1G\"\npath = \"/a\"\n",
         "FILE:5: target[0].path: not for a null target, which needs size"},
        {"[[target]]\nname = \"a\"\ntype = \"nvme\"\n",
         "FILE:1: target[0].device: missing, a nvme target needs it"},
        {"[[target]]\nname = \"a\"\ntype = \"nvme\"\ndevice = \"0000:01:00.0\"\npath = \"/a\"\n",
         "FILE:5: target[0].path: not for a nvme target, which needs device"},
        {"[[target]]\nname = \"a\"\ntype = \"uring\"\npath = \"/a\"\nnamespace = 1\n",
         "FILE:5: target[0].namespace: not for a uring target, which needs path"},
        {disk("target = \"t\"\nfrontend = \"vdpa\"\nsocket = \"/a\""),
         "FILE:9: disk[0].socket: a vdpa disk has no socket"},
        {disk("target = \"t\"\nlane = \"kernel\""),
         "FILE:8: disk[0].lane: for vdpa disks only: the module has no queues of others"},
        {"[daemon]\npromote_iops = 1000\ndemote_iops = 1000\n",
         "FILE:3: daemon.demote_iops: 1000 is not below promote_iops, 1000: a queue would change "
         "lanes for ever"},
        {disk("target = \"t\"\nextents = [ { target = \"t\" } ]"),
         "FILE:8: disk[0].extents: target is given too, expected one of target, file and extents"},
        {disk("extents = []"), "FILE:7: disk[0].extents: expected at least one extent"},
    });
}

TEST_CASE("an NVMe target is a PCI address and a namespace", "[config]") {
    const auto refused = [](const std::string& lines) {
        return refusal("[[target]]\nname = \"a\"\ntype = \"nvme\"\n" + lines);
    };
    CHECK(refused("device = \"0000:01:00.0\"") == "(valid)");
    CHECK(refused("device = \"10de:ff:1f.7\"\nnamespace = 4294967294") == "(valid)");
    CHECK(refused("device = \"0000:01:00.0\"\nnamespace = 0").find("namespace") !=
          std::string::npos);
    for (const char* address : {"", "01:00.0", "0000:01:00.8", "0000:01:00", "0000:0G:00.0",
                                "0000:01:00.00", "0000.01:00.0", "0000:AB:00.0"}) {
        INFO(address);
        CHECK(refused("device = \"" + std::string(address) + "\"").find("is not a PCI address") !=
              std::string::npos);
    }
    const auto named = vql::target_named("nvme:0000:01:00.0/2");
    REQUIRE(named);
    CHECK(named->name == "nvme:0000:01:00.0/2");
    CHECK(named->device == "0000:01:00.0");
    CHECK(named->nsid == 2);
    CHECK(named->type == vql::target_type::nvme);
    for (const char* name : {"nvme", "nvme:", "nvme:0000:01:00.0", "nvme:0000:01:00.0/",
                             "nvme:0000:01:00.0/0", "nvme:0000:01:00.0/x", "nvme:01:00.0/1",
                             "file:0000:01:00.0/1", "nvme:0000:01:00.0/1234567890"}) {
        INFO(name);
        CHECK(!vql::target_named(name));
    }
}

TEST_CASE("a name is 1 to 63 of its characters", "[config]") {
    const std::string why =
        " is not a name, expected 1 to 63 of A-Z a-z 0-9 _ . - (not \".\", \"..\")";
    for (const char* name : {"", ".", "..", "a/b", "a b", "ä", "a\\u0000",
                             "abcdefghijklmnopqrstuvwxyz0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZ-"}) {
        const std::string quoted = "\"" + std::string(name) + "\"";
        INFO(quoted);
        CHECK(refusal("[[disk]]\nfile = \"/x\"\nname = " + quoted) ==
              "FILE:3: disk[0].name: " + quoted + why);
        CHECK(refusal("[[target]]\ntype = \"null\"\nsize = 512\nname = " + quoted) ==
              "FILE:4: target[0].name: " + quoted + why);
    }
    for (const char* name :
         {"a", "...", "A-z_0.9", "abcdefghijklmnopqrstuvwxyz0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZ"})
        CHECK(refusal("[[target]]\ntype = \"null\"\nsize = 512\nname = \"" + std::string(name) +
                      "\"\n[[disk]]\ntarget = \"" + name + "\"\nname = \"" + name + "\"") ==
              "(valid)");
    for (const std::string name : {"disks", "kernel_stats", "stats_tables", "tables", "trace"})
        CHECK(refusal("[[target]]\nname = \"t\"\ntype = \"null\"\nsize = 512\n"
                      "[[disk]]\ntarget = \"t\"\nname = \"" +
                      name + "\"") ==
              "FILE:7: disk[0].name: \"" + name + "\" is reserved, expected another name");
}

TEST_CASE("names are unique and targets known", "[config]") {
    const std::string two = "[[target]]\nname = \"a\"\ntype = \"null\"\nsize = 512\n"
                            "[[target]]\nname = \"b\"\ntype = \"null\"\nsize = 512\n";
    check_refused({
        {two + "[[target]]\nname = \"a\"\ntype = \"null\"\nsize = 512\n",
         "FILE:10: target[2].name: \"a\" is taken by target[0].name"},
        {two + "[[disk]]\nname = \"d\"\ntarget = \"a\"\n[[disk]]\nname = \"d\"\ntarget = \"b\"\n",
         "FILE:13: disk[1].name: \"d\" is taken by disk[0].name"},
        {two + "[[disk]]\nname = \"d\"\ntarget = \"c\"\n",
         "FILE:11: disk[0].target: there is no target \"c\" (known: a, b)"},
        {two + "[[disk]]\nname = \"d\"\nextents = [\n{ target = \"b\", length = \"64K\" },\n{ "
               "target = "
               "\"c\" } ]\n",
         "FILE:13: disk[0].extents[1].target: there is no target \"c\" (known: a, b)"},
        {"[[disk]]\nname = \"d\"\ntarget = \"c\"\n",
         "FILE:3: disk[0].target: there is no target \"c\", nor any other"},
        {two + "[[disk]]\nname = \"d\"\ntarget = \"a\"\nsocket = \"/s\"\n"
               "[[disk]]\nname = \"e\"\ntarget = \"b\"\nsocket = \"/s\"\n",
         "FILE:16: disk[1].socket: \"/s\" is taken by disk[0].socket"},
        {two + "[[disk]]\nname = \"d\"\ntarget = \"a\"\nsocket = \"/run/vqlane/e.sock\"\n"
               "[[disk]]\nname = \"e\"\ntarget = \"b\"\n",
         "FILE:14: disk[1].name: \"/run/vqlane/e.sock\" is taken by disk[0].socket"},
    });
}

TEST_CASE("extents are whole chunks but for the end of the last", "[config]") {
    const auto extents = [](const std::string& first, const std::string& rest) {
        return disk("extents = [\n{ target = \"t\"" + first + " },\n{ target = \"t\" } ]\n" + rest);
    };
    check_refused({
        {extents(", offset = 100", ""),
         "FILE:8: disk[0].extents[0].offset: 100 is not a multiple of 512 bytes"},
        {extents(", length = 100", ""),
         "FILE:8: disk[0].extents[0].length: 100 is not a multiple of 512 bytes"},
        {extents(", length = 0", ""),
         "FILE:8: disk[0].extents[0].length: 0 is not a size, expected 512 bytes or more"},
        {extents(", offset = \"32K\"", ""), "FILE:8: disk[0].extents[0].offset: \"32K\" is not a "
                                            "multiple of 64K, the smallest chunk"},
        {extents(", offset = \"64K\"", "chunk_size = \"1M\""),
         "FILE:8: disk[0].extents[0].offset: \"64K\" is not a multiple of chunk_size"},
        {extents(", length = \"96K\"", ""),
         "FILE:8: disk[0].extents[0].length: \"96K\" is not a multiple of 64K, the smallest chunk, "
         "and this is not the last extent"},
        {disk("extents = [ { target = \"t\", length = \"1048576T\" },\n{ target = \"t\", length = "
              "512 } ]"),
         "FILE:8: disk[0].extents[1]: the extents up to here make more than 2^60 bytes"},
        {disk("extents = [ { target = \"t\", length = \"1M\" } ]\nsize = \"2M\""),
         "FILE:8: disk[0].size: \"2M\" is more than the extents make (1048576 bytes)"},
    });
    CHECK(refusal(disk("extents = [ { target = \"t\", length = \"1M\" },\n"
                       "{ target = \"t\", offset = \"1M\", length = 512 } ]\nsize = 1049088")) ==
          "(valid)");
}

TEST_CASE("paths fit where they are to go", "[config]") {
    const std::string fits = "/" + std::string(93, 'r'), long_name(31, 'n');
    check_refused({
        {"[daemon]\nrun_dir = \"\"\n", "FILE:2: daemon.run_dir: \"\" is not a path"},
        {"[daemon]\nrun_dir = \"a\\u0000b\"\n",
         "FILE:2: daemon.run_dir: \"a\\u0000b\" is not a path"},
        {"[daemon]\nrun_dir = \"" + fits + "r\"\n",
         "FILE:2: daemon.run_dir: a path of 95 bytes is too long, expected at most 94"},
        {"[daemon]\nbpf_dir = \"/" + std::string(4095, 'b') + "\"\n",
         "FILE:2: daemon.bpf_dir: a path of 4096 bytes is too long, expected at most 4095"},
        {disk("target = \"t\"\nsocket = \"/" + std::string(107, 's') + "\""),
         "FILE:8: disk[0].socket: a path of 108 bytes is too long, expected at most 107"},
        {disk("target = \"t\"\nsocket = \"/run/vqlane/control.sock\""),
         "FILE:8: disk[0].socket: its socket /run/vqlane/control.sock is the control socket, "
         "expected another path"},
        {"[[target]]\nname = \"t\"\ntype = \"null\"\nsize = 512\n"
         "[[disk]]\nname = \"control\"\ntarget = \"t\"\n",
         "FILE:6: disk[0].name: its socket /run/vqlane/control.sock is the control socket, "
         "expected another path"},
        {"[daemon]\nrun_dir = \"" + fits + "\"\n[[target]]\nname = \"t\"\ntype = \"null\"\n" +
             "size = 512\n[[disk]]\nname = \"" + long_name + "\"\ntarget = \"t\"\n",
         "FILE:8: disk[0].name: its socket " + fits + "/" + long_name +
             ".sock has 131 bytes, expected at most 107: shorten run_dir or set socket"},
    });
    CHECK(refusal("[daemon]\nrun_dir = \"" + fits + "\"\n") == "(valid)");
    CHECK(refusal(disk("target = \"t\"\nsocket = \"/" + std::string(106, 's') + "\"")) ==
          "(valid)");
}

TEST_CASE("more targets, disks or pollers than the daemon's limits are refused", "[config]") {
    std::string targets, disks = "[[target]]\nname = \"t\"\ntype = \"null\"\nsize = 512\n";
    std::string pollers = "[daemon]\npollers = [0";
    for (int i = 0; i <= 4096; i++)
        targets +=
            "[[target]]\nname = \"" + std::to_string(i) + "\"\ntype = \"null\"\nsize = 512\n";
    for (int i = 0; i <= 1024; i++)
        disks +=
            "[[disk]]\nname = \"" + std::to_string(i) + "\"\ntarget = \"t\"\nread_only = true\n";
    for (int i = 1; i <= 64; i++)
        pollers += ", " + std::to_string(i);
    CHECK(refusal(targets) == "FILE:1: target: 4097 are too many, expected at most 4096");
    CHECK(refusal(disks) == "FILE:5: disk: 1025 are too many, expected at most 1024");
    CHECK(refusal(pollers + "]") ==
          "FILE:2: daemon.pollers: expected an array of 1 to 64 CPU numbers");
    targets.erase(targets.rfind("[[target]]"));
    disks.erase(disks.rfind("[[disk]]"));
    pollers.erase(pollers.rfind(","));
    CHECK(refusal(targets) == "(valid)");
    CHECK(refusal(disks) == "(valid)");
    CHECK(refusal(pollers + "]") == "(valid)");
}

TEST_CASE("a list of known targets is cut short", "[config]") {
    std::string text;
    for (int i = 0; i < 20; i++)
        text += "[[target]]\nname = \"" + std::to_string(i) + "\"\ntype = \"null\"\nsize = 512\n";
    CHECK(refusal(text + "[[disk]]\nname = \"d\"\ntarget = \"x\"\n") ==
          "FILE:83: disk[0].target: there is no target \"x\" (known: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, "
          "10, 11, 12, 13, 14, 15, …)");
}

TEST_CASE("a request obeys the rules of the file, and names no file", "[config]") {
    const json good = {{"op", "disk_add"}, {"name", "d"}, {"target", "t"}};
    const auto with = [&](const char* key, json value) {
        json request = good;
        request[key] = std::move(value);
        return request;
    };
    CHECK(request_refusal(good) == "(valid)");
    CHECK(request_refusal(with("queue_size", 300)) ==
          "queue_size: 300 is not a power of two between 2 and 1024");
    CHECK(request_refusal(with("queues", -1)) == "queues: -1 is not between 1 and 64");
    CHECK(request_refusal(with("size", UINT64_MAX)) ==
          "size: 18446744073709551615 is too large, expected at most 2^60 bytes");
    CHECK(request_refusal(with("name", nullptr)) == "name: expected a string");
    CHECK(request_refusal(with("extents", json::array())) ==
          "extents: expected at least one extent; extents: target is given too, expected one of "
          "target, file and extents");
    CHECK(request_refusal(with("socket", "/" + std::string(107, 's'))) ==
          "socket: a path of 108 bytes is too long, expected at most 107");
    CHECK(request_refusal(with("force", true)).rfind("force: unknown key (known: name, ", 0) == 0);
    CHECK(request_refusal({{"name", "d"}}) == "expected target, file or extents");
    CHECK(request_refusal({{"target", "d"}}) == "name: missing, it has no default");
    CHECK(request_refusal(json::array()) == "expected a table");
    CHECK(request_refusal(nullptr) == "expected a table");
    CHECK(request_refusal("file") == "expected a table");
}

TEST_CASE("a request's file becomes a target of its own", "[config]") {
    std::vector<vql::target_config> own;
    auto parsed = vql::parse_disk({{"name", "d"}, {"file", "/x/y.img"}, {"queues", 3}}, own);
    REQUIRE(parsed);
    REQUIRE(own.size() == 1);
    CHECK(own[0].name == "file:/x/y.img");
    CHECK(own[0].type == vql::target_type::uring);
    CHECK(own[0].path == "/x/y.img");
    CHECK(parsed->queues == 3);
    REQUIRE(parsed->extents.size() == 1);
    CHECK(parsed->extents[0].target == own[0].name);

    REQUIRE(vql::parse_disk({{"name", "d"}, {"target", "t"}}, own));
    CHECK(own.empty());
    CHECK(request_refusal({{"name", "d"}, {"file", "/x"}, {"target", "t"}}) ==
          "file: target is given too, expected one of target, file and extents");
    CHECK(request_refusal({{"name", "d"}, {"file", ""}}) == "file: \"\" is not a path");
    CHECK(request_refusal({{"name", "d"}, {"file", 1}}) == "file: expected a string");
}

TEST_CASE("a disk may name NVMe namespaces without a [[target]]", "[config]") {
    const std::string one = "nvme:0000:01:00.0/1", two = "nvme:0000:02:00.0/3";
    const json extents = {{{"target", one}, {"length", "1M"}},
                          {{"target", "t"}, {"length", "1M"}},
                          {{"target", two}, {"length", "1M"}},
                          {{"target", one}, {"offset", "1M"}}};
    std::vector<vql::target_config> own;
    REQUIRE(vql::parse_disk({{"name", "d"}, {"extents", extents}}, own));
    REQUIRE(own.size() == 2);
    CHECK(own[0].name == one);
    CHECK(own[1].name == two);
    CHECK(own[1].device == "0000:02:00.0");
    CHECK(own[1].nsid == 3);

    auto c = load(
        "[[target]]\nname = \"t\"\ntype = \"null\"\nsize = \"1M\"\n"
        "[[disk]]\nname = \"a\"\ntarget = \"" +
        one +
        "\"\n[[disk]]\nname = \"b\"\nextents = [{target = \"t\", length = \"1M\"}, {target = \"" +
        two + "\"}]\n");
    REQUIRE(c);
    REQUIRE(c->targets.size() == 3);
    CHECK(c->targets[1].name == one);
    CHECK(c->targets[2].name == two);
    CHECK(refusal("[[disk]]\nname = \"a\"\ntarget = \"nvme:0000:01:00.0\"\n")
              .find("there is no target \"nvme:0000:01:00.0\"") != std::string::npos);
}

TEST_CASE("flags replace what the file said, by the same rules", "[config]") {
    auto c = load("[daemon]\npollers = [1, 2]\nspin = \"always\"\nrun_dir = \"/a\"\n");
    REQUIRE(c);
    REQUIRE(vql::override_daemon({{"pollers", {5}}, {"spin_us", 7}}, *c));
    CHECK(c->pollers == std::vector<int>{5});
    CHECK(c->spin_us == 7);
    CHECK_FALSE(c->spin_always);
    CHECK(c->run_dir == "/a");
    REQUIRE(vql::override_daemon({{"spin", "always"}}, *c));
    CHECK(c->spin_always);
    auto wrong = vql::override_daemon({{"pollers", {5, 5000}}}, *c);
    REQUIRE_FALSE(wrong);
    CHECK(wrong.failure().text == "pollers[1]: 5000 is not between 0 and 1023");
}

TEST_CASE("a size is bytes or a number with one suffix", "[config]") {
    const std::pair<const char*, uint64_t> good[] = {
        {"0", 0},
        {"512", 512},
        {"64K", 65536},
        {"3M", 3 << 20},
        {"10G", 10ull << 30},
        {"1T", 1ull << 40},
        {"1048576T", 1ull << 60},
    };
    for (auto [text, bytes] : good) {
        INFO(text);
        auto parsed = vql::parse_size(text);
        REQUIRE(parsed);
        CHECK(*parsed == bytes);
    }
    for (const char* text :
         {"", "K", "-1K", "+1K", " 1K", "1 K", "1KB", "1KK", "1k", "1.5K", "0x200", "511", "768",
          "1P", "1048577T", "18446744073709551616", "99999999999999999999T"}) {
        INFO(text);
        CHECK_FALSE(vql::parse_size(text));
    }
}

} // namespace
