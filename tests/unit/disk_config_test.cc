// SPDX-License-Identifier: GPL-2.0-only
// What a configuration says of a disk's serial number, and of how its target is opened.
#include "config_text.h"

using namespace vql::test;

TEST_CASE("a serial number is 1 to 20 characters, and one disk's", "[config]") {
    for (const std::string bad : {"", "123456789012345678901", "a b", "ä", "a/b", "a\\n"})
        CHECK(refusal(disk("target = \"t\"\nserial = \"" + bad + "\""))
                  .find("disk[0].serial: \"" + bad + "\" is not a serial number") !=
              std::string::npos);
    CHECK(refusal(disk("target = \"t\"\nserial = \"12345678901234567890\"")) == "(valid)");
    const std::string second = "[[target]]\nname = \"u\"\ntype = \"null\"\nsize = \"1G\"\n"
                               "[[disk]]\ntarget = \"u\"\nname = \"e\"\n"; // lines 9 to 15
    const std::string first = disk("target = \"t\"\nserial = \"e\"");
    const std::string taken = "serial number \"e\" is taken by disk[0].serial";
    CHECK(refusal(first + second) == "FILE:15: disk[1].name: " + taken);
    CHECK(refusal(first + second + "serial = \"e\"\n") == "FILE:16: disk[1].serial: " + taken);
    CHECK(refusal(disk("target = \"t\"\nserial = \"f\"") + second) == "(valid)");

    vql::disk_config a, b;
    a.name = std::string(20, 'n');
    CHECK(vql::disk_serial(a) == a.name);
    const std::string begin(62, 'n');
    a.name = begin + "a";
    b.name = begin + "b";
    CHECK(vql::disk_serial(a) != vql::disk_serial(b));
    CHECK(vql::disk_serial(a).size() == 20);
    CHECK(vql::disk_serial(a).substr(0, 10) == "nnnnnnnnn-");
}

TEST_CASE("a target that only read-only disks use is opened for reading", "[config]") {
    const auto read_only = [](const std::string& disks) {
        const auto c = load("[[target]]\nname = \"t\"\ntype = \"uring\"\npath = \"/x\"\n"
                            "format = \"raw\"\n" +
                            disks);
        REQUIRE(c);
        CHECK(c->targets[0].raw);
        return c->targets[0].read_only;
    };
    const auto part = [](const char* name, const char* offset, const char* more) {
        return std::string("[[disk]]\nname = \"") + name +
               "\"\nextents = [ { target = \"t\", offset = \"" + offset +
               "\", length = \"1M\" } ]\n" + more;
    };
    const std::string writer = part("w", "0", ""), reader = part("r", "1M", "read_only = true\n");
    CHECK(!read_only(""));
    CHECK(!read_only(writer));
    CHECK(read_only(reader));
    CHECK(!read_only(reader + writer));
}

TEST_CASE("a disk says what its file is, and no other target", "[config]") {
    const auto c =
        load("[[disk]]\nname = \"d\"\nfile = \"/x\"\nformat = \"raw\"\nread_only = true\n");
    REQUIRE(c);
    REQUIRE(c->targets.size() == 1);
    CHECK(c->targets[0].raw);
    CHECK(c->targets[0].read_only);
    CHECK(refusal(disk("target = \"t\"\nformat = \"raw\"")) ==
          "FILE:8: disk[0].format: goes with file; of other targets their [[target]] says it");
    CHECK(refusal("[[disk]]\nname = \"d\"\nfile = \"/x\"\nformat = \"qcow2\"\n") ==
          "FILE:4: disk[0].format: \"qcow2\" is not one of \"raw\"");
    CHECK(refusal("[[target]]\nname = \"t\"\ntype = \"null\"\nsize = 512\nformat = \"raw\"\n") ==
          "FILE:5: target[0].format: not for a null target, which needs size");
}
