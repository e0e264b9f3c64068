// SPDX-License-Identifier: GPL-2.0-only
// The daemon's maps from one daemon to the next: what stays, what goes, and what is refused.
#include "ebpf/maps.h"

#include <bpf/bpf.h>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sys/mount.h>
#include <sys/stat.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

using namespace vql;
using Catch::Matchers::ContainsSubstring;
namespace fs = std::filesystem;

namespace {

// A BPF file system of this test's own. Skips the test where there are no maps.
class bpf_folder {
  public:
    bpf_folder() {
        bpf_map_create_opts options{};
        options.sz = sizeof(options);
        options.map_flags = BPF_F_MMAPABLE;
        const unique_fd probe(bpf_map_create(BPF_MAP_TYPE_ARRAY, "vql_probe", 4, 8, 1, &options));
        if (!probe)
            SKIP("BPF is not permitted here: creating an array map: " << std::strerror(errno));
        root_ = (fs::temp_directory_path() / "vqlane-maps-XXXXXX").string();
        REQUIRE(::mkdtemp(root_.data()));
        if (::mount("bpf", root_.c_str(), "bpf", 0, nullptr) < 0) {
            const int err = errno;
            fs::remove(root_);
            SKIP("no BPF file system can be mounted here: " << std::strerror(err));
        }
        dir = root_ + "/vqlane";
    }
    bpf_folder(const bpf_folder&) = delete;
    bpf_folder& operator=(const bpf_folder&) = delete;
    ~bpf_folder() {
        ::umount2(root_.c_str(), MNT_DETACH);
        fs::remove(root_);
    }

    std::unique_ptr<bpf_maps> open() const {
        auto maps = bpf_maps::open(dir, bpf_mode::required);
        if (!maps)
            FAIL(maps.failure().text);
        return std::move(*maps);
    }
    bool has(const std::string& name) const { return fs::exists(dir + "/" + name); }

    std::string dir;

  private:
    std::string root_;
};

template <class T>
T checked(result<T> r) {
    if (!r)
        FAIL(r.failure().text);
    return std::move(*r);
}

uint64_t& word(const shared_array& a, uint32_t index) {
    return *reinterpret_cast<uint64_t*>(a.at(index));
}

constexpr uint32_t shift = 20;

// A disk with a table of @chunks words, which count from @first; as the daemon makes one.
shared_array add(bpf_maps& maps, const std::string& name, uint32_t chunks, uint64_t first,
                 uint32_t chunk_shift = shift) {
    const uint32_t slot = checked(maps.take_slot(name));
    shared_array table = checked(maps.make_extents(slot, chunks, chunk_shift));
    for (uint32_t i = 0; i < chunks; i++)
        word(table, i) = first + i;
    REQUIRE(maps.publish_extents(slot, table, chunk_shift));
    return table;
}

// Word @index as a program finds it; ~0: there is no table in @slot.
uint64_t seen(const bpf_folder& folder, uint32_t slot, uint32_t index) {
    const unique_fd tables(bpf_obj_get((folder.dir + "/tables").c_str()));
    uint32_t id = 0;
    if (bpf_map_lookup_elem(tables.get(), &slot, &id) < 0)
        return ~0ull;
    const unique_fd table(bpf_map_get_fd_by_id(id));
    uint64_t value = ~1ull;
    CHECK(bpf_map_lookup_elem(table.get(), &index, &value) == 0);
    return value;
}

} // namespace

TEST_CASE("maps: a disk that lives on has its slot, words and counters with the next daemon",
          "[bpf][maps]") {
    const bpf_folder folder;
    {
        auto maps = folder.open();
        add(*maps, "first", 4, 100);
        add(*maps, "second.x", 8, 200);
        const uint32_t slot = checked(maps->take_slot("second.x"));
        CHECK(slot == 1);
        CHECK_FALSE(maps->inherited(slot));
        auto stats = checked(maps->make_stats(slot, 2));
        reinterpret_cast<vql_disk_stats*>(stats.at(1))->op[0].count = 77;
        maps->forget_disk(checked(maps->take_slot("first")));
    }
    CHECK(folder.has("second:x/extents"));
    CHECK_FALSE(folder.has("first"));
    CHECK(seen(folder, 0, 0) == ~0ull);
    CHECK(seen(folder, 1, 3) == 203); // in between, with no daemon at all
    {
        auto maps = folder.open();
        CHECK(checked(maps->take_slot("other")) == 0);
        const uint32_t slot = checked(maps->take_slot("second.x"));
        CHECK(slot == 1);
        CHECK(maps->inherited(slot));
        auto table = checked(maps->make_extents(slot, 8, shift));
        CHECK(word(table, 7) == 207);
        REQUIRE(maps->publish_extents(slot, table, shift));
        word(table, 7) = 5;
        CHECK(seen(folder, slot, 7) == 5);
        auto stats = checked(maps->make_stats(slot, 2));
        CHECK(reinterpret_cast<vql_disk_stats*>(stats.at(1))->op[0].count == 77);
        // With another number of pollers they are others.
        auto more = checked(maps->make_stats(slot, 3));
        CHECK(reinterpret_cast<vql_disk_stats*>(more.at(1))->op[0].count == 0);
        maps->forget_disk(slot);
        maps->forget_disk(0);
    }
    CHECK_FALSE(fs::exists(folder.dir));
}

TEST_CASE("maps: another size or chunk size is another table; programs see it when it is published",
          "[bpf][maps]") {
    const bpf_folder folder;
    auto maps = folder.open();
    const auto old = add(*maps, "d", 4, 100);
    const uint32_t slot = checked(maps->take_slot("d"));
    auto grown = checked(maps->make_extents(slot, 6, shift));
    CHECK(word(grown, 0) == 0);
    CHECK(seen(folder, slot, 0) == 100);
    word(grown, 5) = 9;
    REQUIRE(maps->publish_extents(slot, grown, shift));
    CHECK(seen(folder, slot, 5) == 9);
    CHECK(word(old, 0) == 100); // who still has it mapped

    auto other = checked(maps->make_extents(slot, 6, shift + 1));
    CHECK(word(other, 5) == 0);
    CHECK(seen(folder, slot, 5) == 9);
    word(other, 5) = 11;
    REQUIRE(maps->publish_extents(slot, other, shift + 1));
    CHECK(seen(folder, slot, 5) == 11);
    maps->forget_disk(slot);
    CHECK(seen(folder, slot, 5) == ~0ull);
}

TEST_CASE("maps: what belongs to no disk any more goes", "[bpf][maps]") {
    const bpf_folder folder;
    {
        auto maps = folder.open();
        add(*maps, "stays", 1, 1);
        add(*maps, "goes", 1, 2);
    }
    auto maps = folder.open();
    const auto fresh = add(*maps, "new", 1, 3);
    maps->forget_unless([](const std::string& name) { return name == "stays"; });
    CHECK(folder.has("stays/extents"));
    CHECK_FALSE(folder.has("goes"));
    CHECK(folder.has("new/extents")); // not inherited: it is ours
    CHECK(seen(folder, 1, 0) == ~0ull);
    CHECK(checked(maps->take_slot("next")) == 1);
}

TEST_CASE("maps: those of another version are refused by version, and stay as they are",
          "[bpf][maps]") {
    const bpf_folder folder;
    {
        auto maps = folder.open();
        add(*maps, "d", 1, 7);
    }
    SECTION("an entry says so") {
        const unique_fd disks(bpf_obj_get((folder.dir + "/disks").c_str()));
        uint32_t slot = 500;
        vql_disk_entry e{};
        e.version = VQL_MAPS_VERSION + 1;
        REQUIRE(bpf_map_update_elem(disks.get(), &slot, &e, BPF_ANY) == 0);
    }
    SECTION("a map is missing") {
        REQUIRE(::unlink((folder.dir + "/disks").c_str()) == 0);
    }
    SECTION("the other one is missing") {
        REQUIRE(::unlink((folder.dir + "/tables").c_str()) == 0);
    }
    SECTION("a map has another shape") {
        REQUIRE(::unlink((folder.dir + "/disks").c_str()) == 0);
        bpf_map_create_opts options{};
        options.sz = sizeof(options);
        options.map_flags = BPF_F_MMAPABLE;
        const unique_fd map(bpf_map_create(BPF_MAP_TYPE_ARRAY, "disks", 4, 32, 1024, &options));
        REQUIRE(bpf_obj_pin(map.get(), (folder.dir + "/disks").c_str()) == 0);
    }
    for (const bpf_mode mode : {bpf_mode::required, bpf_mode::automatic}) {
        auto refused = bpf_maps::open(folder.dir, mode);
        REQUIRE_FALSE(refused);
        CHECK_THAT(refused.failure().text,
                   ContainsSubstring(folder.dir) && ContainsSubstring("another version") &&
                       ContainsSubstring("have version " + std::to_string(VQL_MAPS_VERSION)));
    }
    CHECK(folder.has("d/extents"));
    // Without BPF nobody looks.
    CHECK(bpf_maps::open(folder.dir, bpf_mode::off));
}

TEST_CASE("maps: a daemon that ended before it had made all of them leaves nothing in the way",
          "[bpf][maps]") {
    const bpf_folder folder;
    folder.open();
    {
        auto maps = folder.open();
        checked(maps->take_slot("d"));
    }
    {
        auto maps = folder.open();
        maps->forget_disk(0);
        REQUIRE(::unlink((folder.dir + "/tables").c_str()) == 0);
    }
    const auto table = add(*folder.open(), "d", 1, 1);
    CHECK(seen(folder, 0, 0) == 1);
}

TEST_CASE("maps: without BPF disks have slots all the same", "[maps]") {
    auto maps = checked(bpf_maps::open("/nowhere", bpf_mode::off));
    CHECK_FALSE(maps->active());
    for (uint32_t i = 0; i < VQL_MAX_DISKS; i++)
        REQUIRE(checked(maps->take_slot("d" + std::to_string(i))) == i);
    CHECK(checked(maps->take_slot("d7")) == 7);
    auto full = maps->take_slot("one-more");
    REQUIRE_FALSE(full);
    CHECK(full.failure().text == "more than 1024 disks");
    maps->forget_disk(9);
    CHECK(checked(maps->take_slot("one-more")) == 9);
    CHECK(word(checked(maps->make_extents(9, 3, shift)), 2) == 0);
}
