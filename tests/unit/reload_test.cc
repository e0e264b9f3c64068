// SPDX-License-Identifier: GPL-2.0-only
// What a reload does about each difference between what runs and what files say.
#include "config_text.h"

#include "daemon/reload.h"

namespace {

using namespace vql::test;

using names = std::vector<std::string>;

const std::string target_t = "[[target]]\nname = \"t\"\ntype = \"null\"\nsize = \"1G\"\n";

std::string named(const std::string& name, const std::string& lines) {
    return "[[disk]]\nname = \"" + name + "\"\n" + lines + "\n";
}

vql::config of(const std::string& text) {
    auto c = load(text);
    INFO((c ? "" : c.failure().text));
    REQUIRE(c);
    return *c;
}

// All disks of @c, of 1 GiB each, those in @connected with a guest.
std::vector<vql::running_disk> running(const vql::config& c, const names& connected = {}) {
    std::vector<vql::running_disk> all;
    for (const vql::disk_config& d : c.disks)
        all.push_back(
            {d, 1 << 30, std::find(connected.begin(), connected.end(), d.name) != connected.end()});
    return all;
}

names refused_names(const vql::reload_plan& p) {
    names all;
    for (const auto& r : p.refused)
        all.push_back(r.name);
    return all;
}

bool nothing(const vql::reload_plan& p) {
    return p.remove.empty() && p.replace.empty() && p.add.empty() && p.drop.empty() &&
           p.grow.empty() && p.access.empty() && p.refused.empty();
}

} // namespace

TEST_CASE("a reload of what runs does nothing", "[reload]") {
    const auto c = of(target_t + named("a", "target = \"t\"") + named("b", "file = \"/b\""));
    CHECK(nothing(plan_reload(c, c, running(c, {"a"}))));
}

TEST_CASE("disks come and go with the files, but not under a guest", "[reload]") {
    const auto now = of(named("a", "file = \"/a\"") + named("b", "file = \"/b\""));
    const auto next = of(named("c", "file = \"/c\"") + named("b", "file = \"/b\""));
    const auto p = plan_reload(now, next, running(now));
    CHECK(p.add == names{"c"});
    CHECK(p.remove == names{"a"});
    CHECK(p.refused.empty());
    const auto held = plan_reload(now, next, running(now, {"a"}));
    CHECK(held.add == names{"c"});
    CHECK(held.remove.empty());
    CHECK(refused_names(held) == names{"a"});
}

TEST_CASE("a transient disk stays, whatever the files say of others", "[reload]") {
    const auto now = of(named("a", "file = \"/a\""));
    auto disks = running(of(named("a", "file = \"/a\"") + named("x", "file = \"/x\"")));
    CHECK(nothing(plan_reload(now, now, disks)));
}

TEST_CASE("sizes grow under a guest, and do not shrink", "[reload]") {
    const auto now = of(named("a", "file = \"/a\"\nsize = \"1G\""));
    const auto larger = of(named("a", "file = \"/a\"\nsize = \"2G\""));
    const auto smaller = of(named("a", "file = \"/a\"\nsize = \"512M\""));
    const auto any = of(named("a", "file = \"/a\""));
    const auto p = plan_reload(now, larger, running(now, {"a"}));
    REQUIRE(p.grow.size() == 1);
    CHECK(p.grow[0].name == "a");
    CHECK(p.grow[0].bytes == 2ull << 30);
    CHECK(refused_names(plan_reload(now, smaller, running(now))) == names{"a"});
    CHECK(nothing(plan_reload(now, any, running(now))));
}

TEST_CASE("who may connect changes under a guest", "[reload]") {
    const auto now = of(named("a", "file = \"/a\""));
    const auto next = of(named("a", "file = \"/a\"\nsocket_group = 5"));
    const auto p = plan_reload(now, next, running(now, {"a"}));
    CHECK(p.access == names{"a"});
    CHECK(p.refused.empty());
    CHECK(p.replace.empty());
}

TEST_CASE("what only a new disk has makes a new disk, unless a guest is connected", "[reload]") {
    const auto now = of(target_t + named("a", "file = \"/a\""));
    for (const char* lines : {"file = \"/a\"\nqueues = 2", "file = \"/b\"", "target = \"t\"",
                              "file = \"/a\"\nread_only = true", "file = \"/a\"\nsocket = \"/s\"",
                              "file = \"/a\"\nfrontend = \"vdpa\""}) {
        INFO(lines);
        const auto next = of(target_t + named("a", lines));
        CHECK(plan_reload(now, next, running(now)).replace == names{"a"});
        const auto held = plan_reload(now, next, running(now, {"a"}));
        CHECK(held.replace.empty());
        CHECK(refused_names(held) == names{"a"});
    }
}

TEST_CASE("a target that is another now takes its disks along, or stays", "[reload]") {
    const auto now = of(target_t + named("a", "target = \"t\"\nsize = \"1M\""));
    const auto next = of("[[target]]\nname = \"t\"\ntype = \"uring\"\npath = \"/t\"\n" +
                         named("a", "target = \"t\"\nsize = \"2G\""));
    const auto p = plan_reload(now, next, running(now));
    CHECK(p.drop == names{"t"});
    CHECK(p.replace == names{"a"});
    CHECK(p.grow.empty());
    const auto held = plan_reload(now, next, running(now, {"a"}));
    CHECK(held.drop.empty());
    CHECK(held.replace.empty());
    CHECK(refused_names(held) == names{"target t"});

    // Nor does a new disk come on what only has the name of its target.
    const auto more = of("[[target]]\nname = \"t\"\ntype = \"uring\"\npath = \"/t\"\n" +
                         named("b", "extents = [{ target = \"t\", length = \"1M\" }]"));
    auto both = running(now, {"a"});
    const auto back = plan_reload(of(target_t), more, both);
    CHECK(back.add.empty());
    CHECK(refused_names(back) == names{"target t", "b"});

    const auto none = of("");
    const auto gone = plan_reload(now, none, running(now));
    CHECK(gone.remove == names{"a"});
    CHECK(gone.drop == names{"t"});
    // A transient disk is on it.
    auto disks = running(now);
    const auto kept = plan_reload(of(target_t), none, disks);
    CHECK(kept.drop.empty());
    CHECK(refused_names(kept) == names{"target t"});
}

TEST_CASE("a disk that waits is made anew where it differs", "[reload]") {
    const auto now = of(named("a", "file = \"/a\"\nsize = \"2G\""));
    const auto next = of(named("a", "file = \"/a\"\nsize = \"1G\""));
    auto disks = running(now);
    disks[0].bytes = 0;
    CHECK(plan_reload(now, next, disks).replace == names{"a"});
    CHECK(nothing(plan_reload(now, now, disks)));
}

TEST_CASE("keys of the daemon that need a restart are named", "[reload]") {
    const vql::config now;
    CHECK(vql::need_restart(now, now) == names{});
    CHECK(vql::need_restart(now, of("[daemon]\nspin = \"always\"\nrun_dir = \"/x\"\n")) ==
          names{"run_dir", "spin"});
    CHECK(vql::need_restart(now, of("[daemon]\nlog_level = \"debug\"\npromote_iops = 50000\n")) ==
          names{});
}
