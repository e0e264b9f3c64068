// SPDX-License-Identifier: GPL-2.0-only
// What tables and files say about each other, all errors at once, and what this machine says.
#include "config_text.h"

#include "base/account.h"
#include "daemon/validate.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <thread>

namespace {

using nlohmann::json;
using namespace vql::test;

std::string null(const std::string& name, const std::string& size = "1G") {
    return "[[target]]\nname = \"" + name + "\"\ntype = \"null\"\nsize = \"" + size + "\"\n";
}

std::string file(const std::string& name, const std::string& path) {
    return "[[target]]\nname = \"" + name + "\"\ntype = \"uring\"\npath = \"" + path + "\"\n";
}

std::string whole(const std::string& name, const std::string& target,
                  const std::string& more = "") {
    return "[[disk]]\nname = \"" + name + "\"\ntarget = \"" + target + "\"\n" + more;
}

std::string part(const std::string& name, const std::string& offset, const std::string& length,
                 const std::string& more = "") {
    return "[[disk]]\nname = \"" + name + "\"\nextents = [{ target = \"t\", offset = \"" + offset +
           "\", length = \"" + length + "\" }]\n" + more;
}

// With "DIR" for the folder.
std::vector<std::string> errors_in(const temp_file& at, bool machine = false,
                                   bool* fatal = nullptr) {
    vql::config_text text;
    vql::load_config(at.path(), json::object(), text);
    if (machine)
        vql::check_machine(text, vql::look::storage, std::chrono::milliseconds(500));
    if (fatal)
        *fatal = text.found.fatal();
    std::vector<std::string> lines = text.found.shown();
    for (std::string& line : lines)
        for (size_t i; (i = line.find(at.folder())) != line.npos;)
            line.replace(i, at.folder().size(), "DIR");
    return lines;
}

using lines = std::vector<std::string>;

} // namespace

TEST_CASE("all that is wrong is said at once, in the order of the file", "[config]") {
    CHECK(refusal("[daemon]\n"                // 1
                  "bpf = \"maybe\"\n"         // 2
                  "pollers = [0, 0, \"x\"]\n" // 3
                  "nonsense = 1\n"            // 4
                  "[[disk]]\n"                // 5
                  "queues = 0\n"              // 6
                  "queue_size = 300\n"        // 7
                  "name = \"d\"\n"            // 8
                  "socket = \"relative\"\n"   // 9
                  "target = \"x\"\n"          // 10
                  "[[target]]\n"              // 11
                  "name = \"t\"\n"            // 12
                  "type = \"null\"\n"         // 13
                  "path = \"/x\"\n"           // 14
                  "[[disk]]\n"                // 15
                  "name = \"d\"\n"            // 16
                  "target = \"t\"\n") ==
          "FILE:2: daemon.bpf: \"maybe\" is not one of \"auto\", \"required\", \"off\"\n"
          "FILE:3: daemon.pollers[1]: CPU 0 is in the list already\n"
          "FILE:3: daemon.pollers[2]: expected an integer, between 0 and 1023\n"
          "FILE:4: daemon.nonsense: unknown key (known: run_dir, state_dir, bpf_dir, bpf, pollers, "
          "spin_us, spin, register_memory, allow_untranslated_dma, promote_iops, demote_iops, "
          "log_level)\n"
          "FILE:6: disk[0].queues: 0 is not between 1 and 64\n"
          "FILE:7: disk[0].queue_size: 300 is not a power of two between 2 and 1024\n"
          "FILE:9: disk[0].socket: \"relative\" is relative, expected an absolute path\n"
          "FILE:10: disk[0].target: there is no target \"x\" (known: t)\n"
          "FILE:11: target[0].size: missing, a null target needs it\n"
          "FILE:14: target[0].path: not for a null target, which needs size\n"
          "FILE:16: disk[1].name: \"d\" is taken by disk[0].name");
}

TEST_CASE("of very many errors the first hundred are said, and how many more there are",
          "[config]") {
    std::string text;
    for (int i = 0; i < 250; i++)
        text += "[[target]]\nname = \"t" + std::to_string(i) + "\"\ntype = \"tape\"\n";
    const temp_file at(text);
    const lines said = errors_in(at);
    REQUIRE(said.size() == 101);
    CHECK(said.front().find("/vqlaned.toml:3: target[0].type") != std::string::npos);
    CHECK(said[99].find("/vqlaned.toml:300: target[99].type") != std::string::npos);
    CHECK(said.back() == "and 150 more");
}

TEST_CASE("a path is absolute wherever it stands", "[config]") {
    for (const char* key : {"run_dir", "state_dir", "bpf_dir"})
        CHECK(refusal("[daemon]\n" + std::string(key) + " = \"some/where\"\n") ==
              std::string("FILE:2: daemon.") + key +
                  ": \"some/where\" is relative, expected an absolute path");
    CHECK(refusal(file("t", "vm.img")) ==
          "FILE:4: target[0].path: \"vm.img\" is relative, expected an absolute path");
    CHECK(refusal("[[disk]]\nname = \"d\"\nfile = \"../vm.img\"\n") ==
          "FILE:3: disk[0].file: \"../vm.img\" is relative, expected an absolute path");
}

TEST_CASE("two disks share a part of a target only to read it", "[config]") {
    const std::string ro = "read_only = true\n";
    CHECK(refusal(null("t") + whole("d", "t") + whole("e", "t")) ==
          "FILE:10: disk[1].target: its part of target t at offset 0 overlaps that of disk d at "
          "offset 0, disk[0].target");
    CHECK(refusal(null("t") + part("d", "64M", "128M") + part("e", "0", "64M")) == "(valid)");
    CHECK(refusal(null("t") + part("d", "64M", "128M") + part("e", "0", "128M")) ==
          "FILE:10: disk[1].extents[0].target: its part of target t at offset 0 overlaps that of "
          "disk d at offset 67108864, disk[0].extents[0].target");
    CHECK(refusal(null("t") + part("d", "0", "128M") + whole("e", "t")).find("overlaps") !=
          std::string::npos);
    CHECK(refusal(null("t") + whole("d", "t", ro) + whole("e", "t", ro)) == "(valid)");
    CHECK(refusal(null("t") + whole("d", "t", ro) + whole("e", "t")).find("overlaps") !=
          std::string::npos);
    // One that ends late, and starts before readers that others do not reach.
    CHECK(refusal(null("t") + part("a", "0", "512M", ro) + part("b", "64M", "64M", ro) +
                  part("c", "256M", "64M"))
              .find("FILE:15: disk[2].extents[0].target: its part of target t at offset 268435456 "
                    "overlaps that of disk a") == 0);
    CHECK(refusal(null("t") + "[[disk]]\nname = \"d\"\nextents = [{ target = \"t\" },\n"
                              "{ target = \"t\", offset = \"64M\" }]\n")
              .find("FILE:8: disk[0].extents[1].target: its part of target t") == 0);
}

TEST_CASE("a file, device or namespace is one target", "[config]") {
    CHECK(refusal(file("a", "/x/img") + file("b", "/x//y/../img")) ==
          "FILE:8: target[1].path: /x/img is taken by target[0].path");
    CHECK(refusal(file("a", "/x/img") + "[[disk]]\nname = \"d\"\nfile = \"/x/img\"\n") ==
          "FILE:7: disk[0].file: /x/img is taken by target[0].path");
    CHECK(refusal("[[disk]]\nname = \"d\"\nfile = \"/x/img\"\n"
                  "[[disk]]\nname = \"e\"\nfile = \"/x/./img\"\n") ==
          "FILE:6: disk[1].file: /x/img is taken by disk[0].file");
    CHECK(refusal("[[disk]]\nname = \"d\"\nfile = \"/x/img\"\nread_only = true\n"
                  "[[disk]]\nname = \"e\"\nfile = \"/x/img\"\nread_only = true\n") == "(valid)");
    const std::string drive = "type = \"nvme\"\ndevice = \"0000:01:00.0\"\n";
    CHECK(refusal("[[target]]\nname = \"a\"\n" + drive + "[[target]]\nname = \"b\"\n" + drive) ==
          "FILE:8: target[1].device: nvme:0000:01:00.0/1 is taken by target[0].device");
    CHECK(refusal("[[target]]\nname = \"a\"\n" + drive + whole("d", "nvme:0000:01:00.0/1")) ==
          "FILE:7: disk[0].target: nvme:0000:01:00.0/1 is taken by target[0].device");
    CHECK(refusal("[[target]]\nname = \"a\"\n" + drive + whole("d", "nvme:0000:01:00.0/2")) ==
          "(valid)");
}

TEST_CASE("a disk's file needs no [[target]]", "[config]") {
    const auto c = load("[[disk]]\nname = \"d\"\nfile = \"/x/vm.img\"\n");
    REQUIRE(c);
    REQUIRE(c->targets.size() == 1);
    CHECK(c->targets[0].name == "file:/x/vm.img");
    CHECK(c->targets[0].path == "/x/vm.img");
    CHECK(c->disks[0].extents[0].target == "file:/x/vm.img");
}

TEST_CASE("a socket's group may write it unless a mode says otherwise", "[config]") {
    const auto mode = [](const std::string& lines) {
        auto c = load(disk("target = \"t\"\n" + lines));
        REQUIRE(c);
        return c->disks[0].mode_of_socket();
    };
    CHECK(mode("") == 0600);
    CHECK(mode("socket_group = \"kvm\"") == 0660);
    CHECK(mode("socket_group = 64055") == 0660);
    CHECK(mode("socket_group = \"kvm\"\nsocket_mode = \"0600\"") == 0600);
    CHECK(mode("socket_user = \"qemu\"") == 0600);
    CHECK(refusal(disk("target = \"t\"\nsocket_group = \"\"")) ==
          "FILE:8: disk[0].socket_group: \"\" is not the name of a group");
    CHECK(refusal(disk("target = \"t\"\nsocket_user = -1")) ==
          "FILE:8: disk[0].socket_user: expected a string");
}

TEST_CASE("files in conf.d follow in the order of their names", "[config]") {
    temp_file at(null("a"));
    at.add("conf.d/20.toml", whole("e", "b"));
    at.add("conf.d/10.toml", null("b") + whole("d", "a") + "[daemon]\nlog_level = \"debug\"\n");
    at.add("conf.d/30.toml.bak", "nonsense");
    at.add("conf.d/.hidden.toml", "nonsense");
    vql::config c;
    CHECK(errors_of(at.path(), &c) == lines{});
    CHECK(c.level == vql::log_level::debug);
    REQUIRE(c.targets.size() == 2);
    REQUIRE(c.disks.size() == 2);
    CHECK(c.disks[0].name == "d");
    CHECK(c.disks[1].name == "e");
}

TEST_CASE("what two files say of one thing names both places", "[config]") {
    temp_file at("[daemon]\nspin = \"always\"\n" + null("a") + whole("d", "a"));
    at.add("conf.d/1.toml", null("a") + null("b") + whole("d", "b"));
    at.add("conf.d/2.toml", "[daemon]\nspin_us = 5\n" + whole("e", "a") + "queues = 0\n");
    at.add("conf.d/3.toml", "[[disk]\n");
    const lines said = errors_in(at);
    REQUIRE(said.size() == 6);
    CHECK(said[0] == "DIR/conf.d/1.toml:2: target[0].name: \"a\" is taken by target[0].name "
                     "(DIR/vqlaned.toml:4)");
    CHECK(said[1] == "DIR/conf.d/1.toml:10: disk[0].name: \"d\" is taken by disk[0].name "
                     "(DIR/vqlaned.toml:8)");
    CHECK(said[2] == "DIR/conf.d/2.toml:2: daemon.spin_us: is given in DIR/vqlaned.toml:2 too, as "
                     "daemon.spin");
    CHECK(said[3] == "DIR/conf.d/2.toml:5: disk[0].target: its part of target a at offset 0 "
                     "overlaps that of disk d at offset 0, disk[0].target (DIR/vqlaned.toml:9)");
    CHECK(said[4] == "DIR/conf.d/2.toml:6: disk[0].queues: 0 is not between 1 and 64");
    CHECK(said[5].starts_with("DIR/conf.d/3.toml:1:"));
}

TEST_CASE("what does not fit the machine is found with its place", "[config]") {
    temp_file at("");
    const std::string dir = at.folder();
    at.add("vm.img", std::string(1 << 20, 'x'));
    at.add("empty.img", "");
    std::filesystem::create_symlink(dir + "/vm.img", dir + "/link");
    std::filesystem::create_directory(dir + "/folder");
    at.add("plain", "x");
    bool fatal = false;
    const auto check = [&](const std::string& text) {
        at.add("vqlaned.toml", text);
        lines said = errors_in(at, true, &fatal);
        return said.size() == 1 ? said[0] : std::to_string(said.size()) + " errors";
    };
    const std::string good = file("t", dir + "/vm.img");

    CHECK(check(good + whole("d", "t", "size = \"1M\"\n")) == "0 errors");
    CHECK(check("[daemon]\npollers = [0,\n1023]\n") ==
          "DIR/vqlaned.toml:3: daemon.pollers[1]: " + vql::why_not_on(1023));
    CHECK(fatal);
    CHECK(check(file("t", dir + "/none")) ==
          "DIR/vqlaned.toml:4: target[0].path: DIR/none: No such file or directory");
    CHECK_FALSE(fatal);
    CHECK(check("[[disk]]\nname = \"d\"\nfile = \"" + dir + "/none\"\n") ==
          "DIR/vqlaned.toml:3: disk[0].file: DIR/none: No such file or directory");
    CHECK(check(file("t", "/dev/zero")) == "DIR/vqlaned.toml:4: target[0].path: /dev/zero: neither "
                                           "a regular file nor a block device");
    CHECK(check(file("t", dir + "/empty.img")) ==
          "DIR/vqlaned.toml:4: target[0].path: DIR/empty.img: empty, a target needs at least one "
          "block");
    CHECK_FALSE(fatal);
    CHECK(check(good + whole("d", "t") + "[[disk]]\nname = \"e\"\nfile = \"" + dir + "/link\"\n") ==
          "DIR/vqlaned.toml:10: disk[1].file: DIR/link is another name of \"DIR/vm.img\", "
          "DIR/vqlaned.toml:4: target[0].path");
    CHECK(fatal);
    CHECK(check(good + whole("d", "t", "size = \"2M\"\n")) ==
          "DIR/vqlaned.toml:8: disk[0].size: size 2097152 is beyond its targets' 1048576 bytes");
    CHECK_FALSE(fatal);
    CHECK(check(null("t", "1M") + whole("d", "t", "size = \"2M\"\n")) ==
          "DIR/vqlaned.toml:8: disk[0].size: size 2097152 is beyond its targets' 1048576 bytes");
    CHECK(fatal);
    CHECK(check(good + part("d", "512K", "1M")) ==
          "DIR/vqlaned.toml:7: disk[0].extents[0].target: the extent of 1048576 bytes at offset "
          "524288 ends beyond target t of 1048576 bytes");
    CHECK(check(good + whole("d", "t", "socket = \"" + dir + "/folder\"\n")) ==
          "DIR/vqlaned.toml:8: disk[0].socket: its socket DIR/folder is a directory");
    CHECK(check(good + whole("d", "t", "socket = \"" + dir + "/plain\"\n")) ==
          "DIR/vqlaned.toml:8: disk[0].socket: its socket DIR/plain exists and is not a socket; "
          "remove it or choose another path");
    CHECK(check(good + whole("d", "t", "socket = \"" + dir + "/no/s\"\n")) ==
          "DIR/vqlaned.toml:8: disk[0].socket: its socket DIR/no/s: there is no folder for it");
    CHECK(check(good + whole("d", "t", "socket_group = \"no-such-group\"\n")) ==
          "DIR/vqlaned.toml:8: disk[0].socket_group: there is no group no-such-group");
    CHECK(check("[daemon]\nrun_dir = \"" + dir + "/plain\"\n") ==
          "DIR/vqlaned.toml:2: daemon.run_dir: DIR/plain is not a directory");
    CHECK(check("[[disk]]\nname = \"d\"\ntarget = \"nvme:ffff:1f:1f.7/1\"\n") ==
          "DIR/vqlaned.toml:3: disk[0].target: there is no PCI device ffff:1f:1f.7 (see: vqlane "
          "device list)");
    CHECK_FALSE(fatal);
}

TEST_CASE("users and groups go by name or number", "[config]") {
    CHECK(*vql::user_id("root") == 0);
    CHECK(*vql::group_id("root") == 0);
    CHECK(*vql::group_id("4294967294") == 4294967294u);
    CHECK_FALSE(vql::group_id("4294967295")); // "leave it"
    CHECK_FALSE(vql::user_id("no-such-user"));
}
