// SPDX-License-Identifier: GPL-2.0-only
// vqlane device on a machine made of files, with a thread for the kernel's part. What only a real
// kernel shows (exclusive opens above all) is tests/vm/cases/device.
#include "base/fd.h"
#include "base/signature.h"
#include "cli/device_bind.h"
#include "cli/device_boot.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sys/mman.h>
#include <thread>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <nlohmann/json.hpp>

namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;
using nlohmann::json;
using namespace std::chrono_literals;
using lines = std::vector<std::string>;

// sysfs, procfs and devtmpfs of a machine whose kernel binds and unbinds as it is told.
class fake_host {
  public:
    fake_host() {
        root_ = (fs::temp_directory_path() / "vqlane-device-XXXXXX").string();
        REQUIRE(::mkdtemp(root_.data()));
        tree = {root_ + "/sys", root_ + "/proc", root_ + "/dev", 2s,
                root_ + "/etc", root_ + "/run"};
        fs::create_directories(tree.sys + "/bus/pci/devices");
        for (const char* driver : {"nvme", "vqlane", "vfio-pci"})
            for (const char* file : {"bind", "unbind"})
                write(tree.driver(driver) + "/" + file, "");
        write(tree.proc + "/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        write(tree.proc + "/self/mountinfo", "22 1 0:21 / /proc rw,relatime - proc proc rw\n");
        fs::create_directories(tree.dev + "/vqlane");
    }
    ~fake_host() {
        stop_ = true;
        if (kernel_.joinable())
            kernel_.join();
        fs::remove_all(root_);
    }

    void write(const std::string& path, const std::string& text) {
        fs::create_directories(fs::path(path).parent_path());
        std::ofstream(path) << text;
    }
    void append(const std::string& path, const std::string& text) {
        std::ofstream(path, std::ios::app) << text;
    }
    // A PCI function of class @type, with a driver that may be empty.
    void function(const std::string& bdf, const std::string& driver,
                  const std::string& type = "0x010802") {
        write(tree.function(bdf) + "/class", type + "\n");
        write(tree.function(bdf) + "/driver_override", "(null)\n");
        if (!driver.empty())
            fs::create_symlink("../../../bus/pci/drivers/" + driver,
                               tree.function(bdf) + "/driver");
    }
    void iommu(const std::string& bdf, const std::string& type) {
        write(tree.function(bdf) + "/iommu_group/type", type + "\n");
    }
    // A function of class NVMe that the kernel's driver has as @name.
    void controller(const std::string& bdf, const std::string& name,
                    const std::string& nqn = "nqn.unique") {
        function(bdf, "nvme");
        const std::string at = tree.function(bdf) + "/nvme/" + name;
        write(at + "/model", "A Drive             \n");
        write(at + "/serial", "S-" + name + "        \n");
        write(at + "/subsysnqn", nqn + (nqn == "nqn.unique" ? "." + bdf : "") + "\n");
    }
    // @entry: the controller's name for it, "nvme0n1" or a path "nvme0c1n1" to @disk.
    void ns(const std::string& bdf, const std::string& controller, const std::string& entry,
            const std::string& disk, const std::string& head = "", const std::string& nsid = "1") {
        const std::string path = tree.function(bdf) + "/nvme/" + controller + "/" + entry;
        write(path + "/wwid", "eui.1\n");
        write(path + "/nsid", nsid + "\n");
        const std::string at = tree.sys + "/class/block/" + disk;
        write(at + "/size", "2097152\n"); // 1 GiB in 512 bytes, also of a 4096-byte drive
        write(at + "/queue/logical_block_size", "4096\n");
        write(at + "/dev", disk == "nvme0n1" ? "259:7\n" : "259:17\n");
        fs::create_directories(at + "/holders");
        write(tree.dev + "/" + disk, head);
    }
    void partition(const std::string& disk, const std::string& name, const std::string& number) {
        for (const std::string& at : {"/" + disk + "/" + name, "/" + name}) {
            write(tree.sys + "/class/block" + at + "/partition", "1\n");
            write(tree.sys + "/class/block" + at + "/dev", number + "\n");
        }
    }
    void open_in(int pid, const std::string& program, const std::string& path) {
        const std::string process = tree.proc + "/" + std::to_string(pid);
        write(process + "/comm", program + "\n");
        fs::create_directories(process + "/fd");
        fs::create_symlink(path, process + "/fd/7");
    }

    // From here on drivers do what is written to their files.
    void run_kernel() {
        kernel_ = std::thread([this] {
            while (!stop_) {
                for (const char* driver : {"nvme", "vqlane"})
                    for (const char* what : {"unbind", "bind"})
                        serve(driver, what);
                std::this_thread::sleep_for(1ms);
            }
        });
    }
    // What it was told to do: "unbind nvme 0000:01:00.0 override vqlane".
    lines events() {
        const std::lock_guard lock(mutex_);
        return events_;
    }

    vql::host_tree tree;

  private:
    void serve(const std::string& driver, const std::string& what) {
        const std::string file = tree.driver(driver) + "/" + what;
        const std::string bdf = vql::read_attribute(file);
        if (bdf.empty())
            return;
        fs::resize_file(file, 0);
        const std::string function = tree.function(bdf);
        const std::string override = vql::read_attribute(function + "/driver_override");
        const std::lock_guard lock(mutex_);
        std::error_code none;
        events_.push_back(what + " " + driver + " " + bdf + " override " + override);
        if (what == "unbind") {
            fs::remove(tree.vqlane_node(bdf), none);
            fs::rename(function + "/nvme", function + "/was-nvme", none);
            fs::remove(function + "/driver");
        } else if (driver == "nvme" ? override.empty() || override == "(null)"
                                    : override == driver) {
            if (driver == "vqlane")
                std::ofstream(tree.vqlane_node(bdf)).flush();
            fs::create_symlink("../drivers/" + driver, function + "/driver");
            std::this_thread::sleep_for(20ms); // namespaces come after the binding
            if (driver == "nvme")
                fs::rename(function + "/was-nvme", function + "/nvme", none);
        }
    }

    std::string root_;
    std::thread kernel_;
    std::atomic<bool> stop_ = false;
    std::mutex mutex_;
    lines events_;
};

// One drive with one namespace and a translating IOMMU.
struct one_drive : fake_host {
    one_drive() {
        controller("0000:01:00.0", "nvme0");
        ns("0000:01:00.0", "nvme0", "nvme0c0n1", "nvme0n1");
        iommu("0000:01:00.0", "DMA");
    }
    lines uses() {
        auto devices = vql::list_devices(tree);
        REQUIRE(devices);
        lines texts;
        for (const vql::device_use& use : vql::objections(devices->front(), *devices))
            texts.push_back(std::to_string(static_cast<int>(use.weight)) + " " + use.text);
        return texts;
    }
    std::string node(const std::string& name) { return tree.dev + "/" + name; }
};

// What bind or unbind said: its lines, and "error: …" at the end where it failed.
template <class Change>
lines said(Change change, fake_host& host, const std::string& name, bool force = false) {
    lines all;
    const auto done =
        change(host.tree, name, force, [&](const std::string& l) { all.push_back(l); });
    if (!done)
        all.push_back("error: " + done.failure().text);
    return all;
}

std::string error_of(const lines& all) {
    REQUIRE(!all.empty());
    REQUIRE(all.back().substr(0, 7) == "error: ");
    return all.back();
}

std::string found(fake_host& host, const std::string& name) {
    const auto devices = vql::list_devices(host.tree);
    REQUIRE(devices);
    const auto device = vql::find_device(host.tree, *devices, name);
    return device ? (*device)->bdf : "error: " + device.failure().text;
}

TEST_CASE("the list has NVMe functions alone, with driver, IOMMU and namespaces", "[device]") {
    fake_host host;
    host.controller("0000:01:00.0", "nvme0");
    host.ns("0000:01:00.0", "nvme0", "nvme0c0n1", "nvme0n1", "", "2");
    host.ns("0000:01:00.0", "nvme0", "nvme0c0n2", "nvme0n2", "", "1");
    host.iommu("0000:01:00.0", "DMA-FQ");
    host.function("0000:00:1f.2", "ahci", "0x010601");
    host.function("0000:02:00.0", "vfio-pci");
    host.iommu("0000:02:00.0", "identity");
    host.function("0000:03:00.0", "");
    const auto devices = vql::list_devices(host.tree);
    REQUIRE(devices);

    const json expected = json::parse(R"([
        {"device": "0000:01:00.0", "model": "A Drive", "serial": "S-nvme0", "driver": "nvme",
         "iommu": "lazy", "persistent": false, "in_use": [],
         "namespaces": [{"nsid": 1, "device": "nvme0n2", "size": 1073741824, "block_size": 4096},
                        {"nsid": 2, "device": "nvme0n1", "size": 1073741824, "block_size": 4096}]},
        {"device": "0000:02:00.0", "model": null, "serial": null, "driver": "vfio-pci",
         "iommu": "passthrough", "persistent": false, "in_use": [], "namespaces": []},
        {"device": "0000:03:00.0", "model": null, "serial": null, "driver": null,
         "iommu": "none", "persistent": false, "in_use": [], "namespaces": []}])");
    CHECK(vql::device_json(*devices) == expected);
    CHECK(vql::device_table(*devices) == "DEVICE        MODEL    SERIAL   DRIVER    BOOT  IOMMU    "
                                         "    NAMESPACES                    USE\n"
                                         "0000:01:00.0  A Drive  S-nvme0  nvme      -     lazy     "
                                         "    1: nvme0n2 1G, 2: nvme0n1 1G  -\n"
                                         "0000:02:00.0  -        -        vfio-pci  -     "
                                         "passthrough  -                             -\n"
                                         "0000:03:00.0  -        -        -         -     none     "
                                         "    -                             -\n");
    host.tree.sys += "/nowhere";
    CHECK(!vql::list_devices(host.tree));
}

TEST_CASE("whatever uses a drive is found, and told by name", "[device]") {
    one_drive host;
    const std::string disk = host.tree.sys + "/class/block/nvme0n1";
    host.controller("0000:02:00.0", "nvme1"); // another drive, of which nothing is said
    host.ns("0000:02:00.0", "nvme1", "nvme1c1n1", "nvme1n1", "XFSB");
    CHECK(host.uses().empty());

    SECTION("a mount, by device number") {
        host.append(host.tree.proc + "/self/mountinfo",
                    "40 27 259:70 / /x rw - ext4 x rw\n"
                    "41 27 259:7 / /mnt/a\\040b rw shared:1 - ext4 /dev/root rw\n");
        CHECK(host.uses() == lines{"2 " + host.node("nvme0n1") + " is mounted on /mnt/a b"});
    }
    SECTION("a mount that has a device number of its own") {
        host.append(host.tree.proc + "/self/mountinfo",
                    "40 27 0:45 / /data rw - btrfs " + host.node("nvme0n1") + " rw\n");
        CHECK(host.uses() == lines{"2 " + host.node("nvme0n1") + " is mounted on /data"});
    }
    SECTION("swap") {
        host.append(host.tree.proc + "/swaps", host.node("nvme0n1") + " partition\t9\t0\t-2\n");
        CHECK(host.uses() == lines{"2 " + host.node("nvme0n1") + " is swap"});
    }
    SECTION("holders") {
        fs::create_directories(disk + "/holders/dm-3");
        fs::create_directories(disk + "/holders/md127");
        host.write(host.tree.sys + "/class/block/dm-3/dm/name", "vg0-root\n");
        CHECK(host.uses() == lines{"2 " + host.node("nvme0n1") + " is held by dm-3 (vg0-root)",
                                   "2 " + host.node("nvme0n1") + " is held by md127"});
    }
    SECTION("programs") {
        host.open_in(17, "qemu-system-x86", host.node("nvme0n1"));
        host.open_in(18, "fio", host.node("ng0n1"));
        host.open_in(19, "other", host.node("nvme0n10"));
        CHECK(host.uses() ==
              lines{"2 " + host.node("nvme0n1") + " is open in qemu-system-x86 (pid 17)",
                    "2 " + host.node("ng0n1") + " is open in fio (pid 18)"});
    }
    SECTION("partitions, and what uses them") {
        host.partition("nvme0n1", "nvme0n1p1", "259:8");
        host.partition("nvme0n1", "nvme0n1p2", "259:9");
        host.write(host.node("nvme0n1"), std::string(510, '\0') + "\x55\xaa");
        host.append(host.tree.proc + "/self/mountinfo", "40 27 259:9 / /home rw - xfs x rw\n");
        CHECK(host.uses() == lines{"2 " + host.node("nvme0n1p2") + " is mounted on /home",
                                   "1 " + host.node("nvme0n1") + " has 2 partitions"});
    }
    SECTION("a file system that nobody has mounted") {
        host.write(host.node("nvme0n1"), "XFSB");
        CHECK(host.uses() == lines{"0 " + host.node("nvme0n1") + " holds an XFS file system"});
    }
    SECTION("a part of a volume group that is not active") {
        host.write(host.node("nvme0n1"), std::string(512 + 24, '\0') + "LVM2 001");
        CHECK(host.uses() == lines{"1 " + host.node("nvme0n1") + " holds an LVM physical volume"});
    }
    SECTION("a device that cannot be read") {
        fs::remove(host.node("nvme0n1"));
        CHECK(host.uses() == lines{"1 what is on it is unknown: " + host.node("nvme0n1") +
                                   ": No such file or directory"});
    }
}

TEST_CASE("signatures are found where their formats have them, and not elsewhere", "[device]") {
    struct {
        size_t offset;
        std::string magic;
        const char* name;
    } const cases[] = {
        {24 + 1536, "LVM2 001", "an LVM physical volume"},
        {4096, "\xfc\x4e\x2b\xa9", "a member of an md array"},
        {0, "LUKS\xba\xbe", "a LUKS container"},
        {1080, "\x53\xef", "an ext2, ext3 or ext4 file system"},
        {65600, "_BHRfS_M", "a btrfs file system"},
        {4086, "SWAPSPACE2", "a swap area"},
        {510, "\x55\xaa", "a boot sector or partition table"},
        {131072 + 5 * 1024, std::string("\x0c\xb1\xba\0\0\0\0\0", 8), "a member of a ZFS pool"},
    };

    for (const auto& c : cases) {
        INFO(c.name);
        std::vector<uint8_t> head(vql::signature_bytes);
        CHECK(!vql::signature_of(head).name);
        std::copy(c.magic.begin(), c.magic.end(), head.begin() + static_cast<long>(c.offset));
        REQUIRE(vql::signature_of(head).name);
        CHECK(std::string(vql::signature_of(head).name) == c.name);
        // A device that ends within it.
        CHECK(!vql::signature_of({head.data(), c.offset + c.magic.size() - 1}).name);
        std::rotate(head.begin(), head.begin() + 1, head.end());
        CHECK(!vql::signature_of(head).name);
    }
}

TEST_CASE("formats and pools are told by both ends of a device", "[device]") {
    constexpr uint64_t bytes = (1 << 20) + 5 * 512; // not a round number of anything
    struct {
        uint64_t offset;
        std::string magic;
        const char* image;
        const char* member;
    } const cases[] = {
        {0, "QFI\xfb", "a qcow2 image", nullptr},
        {0x40, "\x7f\x10\xda\xbe", "a VDI image", nullptr},
        {bytes - 512, "conectix", "a VHD image", nullptr},
        {0x218, "LVM2 001", nullptr, "an LVM physical volume"},
        {0, "SPDKBLOB", nullptr, "an SPDK blobstore"},
        {0, "bluestore block device\n", nullptr, "a Ceph OSD"},
        {(1 << 20) - 65536, "\xfc\x4e\x2b\xa9", nullptr, "a member of an md array"},    // 0.90
        {(1 << 20) - 16 * 512, "\xfc\x4e\x2b\xa9", nullptr, "a member of an md array"}, // 1.0
        {(1 << 20) - 4096 + 60, "\x83\x74\x02\x6b", nullptr, "a DRBD device"},
        {1080, "\x53\xef", nullptr, nullptr}, // a guest's
        {510, "\x55\xaa", nullptr, nullptr},
        {0, "LUKS\xba\xbe", nullptr, nullptr},
    };
    const auto name = [](const vql::signature& s) { return std::string(s.name ? s.name : ""); };
    for (const auto& c : cases) {
        INFO(c.offset << " " << c.magic);
        std::vector<uint8_t> all(bytes);
        std::copy(c.magic.begin(), c.magic.end(), all.begin() + static_cast<long>(c.offset));
        const std::span head(all.data(), vql::signature_bytes);
        const std::span tail(all.end() - static_cast<long>(vql::signature_tail_bytes), all.end());
        CHECK(name(vql::image_signature(head, tail)) == (c.image ? c.image : ""));
        CHECK(name(vql::member_signature(head, tail, bytes)) == (c.member ? c.member : ""));
        // Small ones, down to nothing.
        for (size_t n : {0, 1, 512, 4096, 65536}) {
            vql::image_signature({all.data(), n}, {all.data(), n});
            vql::member_signature({all.data(), n}, {all.data(), n}, n);
        }
    }
    // btrfs: of one device a file system as others, of several a part.
    std::vector<uint8_t> head(vql::signature_bytes);
    const std::string magic = "_BHRfS_M";
    std::copy(magic.begin(), magic.end(), head.begin() + 0x10040);
    head[0x10088] = 1;
    CHECK(name(vql::member_signature(head, {}, head.size())).empty());
    head[0x10088] = 2;
    CHECK(!name(vql::member_signature(head, {}, head.size())).empty());
}

TEST_CASE("a drive is named by address, block device or controller", "[device]") {
    one_drive host;
    host.function("0000:00:1f.2", "ahci", "0x010601");
    host.partition("nvme0n1", "nvme0n1p1", "259:8");
    fs::create_symlink("nvme0n1", host.node("link"));

    for (const char* name : {"0000:01:00.0", "01:00.0", "nvme0n1", "nvme0"})
        CHECK(found(host, name) == "0000:01:00.0");
    CHECK(found(host, host.node("nvme0n1")) == "0000:01:00.0");
    CHECK(found(host, host.node("link")) == "0000:01:00.0");
    CHECK_THAT(found(host, "02:00.0"), ContainsSubstring("no NVMe function 02:00.0"));
    CHECK_THAT(found(host, "nvme0n"), ContainsSubstring("no NVMe function"));
    CHECK_THAT(found(host, "00:1f.2"), ContainsSubstring("of class 0x010601"));
    CHECK_THAT(found(host, host.node("nvme0n1p1")), ContainsSubstring("is a partition"));
}

TEST_CASE("bind gives a drive to the module and to no other driver in between", "[device]") {
    one_drive host;
    host.run_kernel();
    CHECK(said(vql::bind_device, host, "nvme0n1") ==
          lines{"0000:01:00.0: taken from nvme",
                "0000:01:00.0: bound to vqlane, " + host.tree.vqlane_node("0000:01:00.0")});
    CHECK(host.events() == lines{"unbind nvme 0000:01:00.0 override vqlane",
                                 "bind vqlane 0000:01:00.0 override vqlane"});
    CHECK(said(vql::bind_device, host, "01:00.0") ==
          lines{"0000:01:00.0: is bound to vqlane already"});

    CHECK(said(vql::unbind_device, host, "01:00.0") ==
          lines{"0000:01:00.0: taken from vqlane", "0000:01:00.0: bound to nvme, nvme0n1 (1G)"});
    CHECK(host.events().size() == 4);
    CHECK(host.events()[2] == "unbind vqlane 0000:01:00.0 override ");
    CHECK(host.events()[3] == "bind nvme 0000:01:00.0 override ");
    CHECK_THAT(error_of(said(vql::unbind_device, host, "01:00.0")),
               ContainsSubstring("is with nvme, not with vqlane"));
}

TEST_CASE("bind refuses a drive in use, --force or not", "[device]") {
    one_drive host;
    host.run_kernel();
    host.append(host.tree.proc + "/self/mountinfo", "40 27 259:7 / /srv rw - xfs x rw\n");
    for (const bool force : {false, true})
        CHECK(error_of(said(vql::bind_device, host, "01:00.0", force)) ==
              "error: 0000:01:00.0 stays with the kernel, since\n    " + host.node("nvme0n1") +
                  " is mounted on /srv\nEnd that use first; --force does not override it.");
    CHECK(host.events().empty());
}

TEST_CASE("bind takes a drive with partitions only by --force", "[device]") {
    one_drive host;
    host.run_kernel();
    host.partition("nvme0n1", "nvme0n1p1", "259:8");
    CHECK_THAT(error_of(said(vql::bind_device, host, "01:00.0")),
               ContainsSubstring("has 1 partition\n--force takes it nevertheless"));
    CHECK(host.events().empty());
    const lines all = said(vql::bind_device, host, "01:00.0", true);
    CHECK(all.front() == "note: " + host.node("nvme0n1") + " has 1 partition");
    CHECK(vql::link_name(host.tree.function("0000:01:00.0") + "/driver") == "vqlane");
}

TEST_CASE("bind tells of a drive that no IOMMU holds back", "[device]") {
    const char* type = GENERATE(static_cast<const char*>(nullptr), "identity");
    fake_host host;
    host.run_kernel();
    host.controller("0000:01:00.0", "nvme0");
    if (type)
        host.iommu("0000:01:00.0", type);
    const lines all = said(vql::bind_device, host, "01:00.0");
    REQUIRE(all.size() == 3);
    CHECK_THAT(all[0], ContainsSubstring("warning: no IOMMU") &&
                           ContainsSubstring(type ? "(passthrough)" : "(none)") &&
                           ContainsSubstring("allow_untranslated_dma"));
}

std::string group(const fake_host& host, const std::string& bdf = "0000:01:00.0") {
    return vql::read_attribute(host.tree.function(bdf) + "/iommu_group/type");
}

TEST_CASE("a lazy IOMMU group is made strict by bind, and lazy again by unbind", "[device]") {
    one_drive host;
    host.run_kernel();
    host.iommu("0000:01:00.0", "DMA-FQ");
    const lines all = said(vql::bind_device, host, "01:00.0");
    REQUIRE(all.size() == 3);
    CHECK(all[1] == "0000:01:00.0: its IOMMU group is strict now (type DMA, was DMA-FQ)");
    CHECK(group(host) == "DMA");
    said(vql::unbind_device, host, "01:00.0");
    CHECK(group(host) == "DMA-FQ");

    SECTION("what the operator made strict stays so") {
        host.iommu("0000:01:00.0", "DMA");
        CHECK(said(vql::bind_device, host, "01:00.0").size() == 2);
        said(vql::unbind_device, host, "01:00.0");
        CHECK(group(host) == "DMA");
    }
    SECTION("so does it after a bind that fails") {
        fs::remove(host.tree.driver("vqlane") + "/bind");
        fs::create_directory(host.tree.driver("vqlane") + "/bind");
        CHECK_THAT(error_of(said(vql::bind_device, host, "01:00.0")),
                   ContainsSubstring("0000:01:00.0 is with nvme again"));
        CHECK(group(host) == "DMA-FQ");
    }
}

TEST_CASE("others of the IOMMU group that keep it lazy are named", "[device]") {
    one_drive host;
    host.run_kernel();
    host.iommu("0000:01:00.0", "DMA-FQ");
    host.function("0000:01:00.1", "vfio-pci", "0x0c0330");
    host.function("0000:01:00.2", "", "0x0c0330");
    for (const char* bdf : {"0000:01:00.0", "0000:01:00.1", "0000:01:00.2"})
        host.write(host.tree.function("0000:01:00.0") + "/iommu_group/devices/" + bdf, "");
    // As busy as the kernel's: it can be read, and not written, not even by root.
    const vql::unique_fd type(::memfd_create("type", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    REQUIRE(::write(type.get(), "DMA-FQ\n", 7) == 7);
    REQUIRE(!::fcntl(type.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK));
    fs::remove(host.tree.function("0000:01:00.0") + "/iommu_group/type");
    fs::create_symlink("/proc/self/fd/" + std::to_string(type.get()),
                       host.tree.function("0000:01:00.0") + "/iommu_group/type");
    const std::string why = error_of(said(vql::bind_device, host, "01:00.0"));
    CHECK_THAT(why,
               ContainsSubstring("cannot be made strict while drivers have others of the group: "
                                 "0000:01:00.1 (vfio-pci). Unbind those") &&
                   ContainsSubstring("0000:01:00.0 is with nvme again"));
    CHECK(!vql::path_exists(host.tree.group_note("0000:01:00.0")));
}

TEST_CASE("a drive that is bound for good has a rule and the module's name, until unbind",
          "[device]") {
    one_drive host;
    host.run_kernel();
    host.controller("0000:02:00.0", "nvme1");
    for (const char* bdf : {"0000:01:00.0", "0000:02:00.0"}) {
        host.write(host.tree.function(bdf) + "/vendor", "0x8086\n");
        host.write(host.tree.function(bdf) + "/device", "0x0a54\n");
    }
    const auto persist = [&](const std::string& bdf,
                             const std::string& program = "/usr/bin/vqlane") {
        return vql::persist_device(host.tree, bdf, program, [](const std::string&) {});
    };
    const std::string rules = host.tree.etc + "/udev/rules.d/60-vqlane.rules";
    const std::string modules = host.tree.etc + "/modules-load.d/vqlane.conf";
    const auto lines_with = [&](const std::string& text) {
        std::ifstream file(rules);
        size_t n = 0;
        for (std::string line; std::getline(file, line);)
            n += line.find(text) != line.npos;
        return n;
    };
    host.write(host.tree.function("0000:01:00.0") + "/nvme/nvme0/serial", "S 1\", RUN+=\"x\n");
    CHECK(!vql::is_persistent(host.tree, "0000:01:00.0"));
    REQUIRE(persist("0000:01:00.0"));
    REQUIRE(persist("0000:02:00.0"));
    REQUIRE(persist("0000:01:00.0")); // once more is once
    CHECK(lines_with("KERNEL==\"0000:01:00.0\"") == 1);
    CHECK(lines_with("ATTR{vendor}==\"0x8086\", ATTR{device}==\"0x0a54\", "
                     "ATTR{driver_override}=\"vqlane\"") == 2);
    CHECK(lines_with(
              "RUN+=\"/usr/bin/vqlane device restore 0000:01:00.0 --serial S_1___RUN___x\"") == 1);
    CHECK(vql::is_persistent(host.tree, "0000:01:00.0"));
    CHECK(vql::path_exists(modules));
    CHECK(vql::device_json(*vql::list_devices(host.tree))[0]["persistent"] == true);
    CHECK_THAT(vql::device_table(*vql::list_devices(host.tree)),
               ContainsSubstring("nvme    vqlane  translated"));

    CHECK_FALSE(persist("0000:01:00.0", "vqlane"));
    CHECK_FALSE(persist("0000:01:00.0", "/opt/a b/vqlane"));
    host.append(rules, "# mine\n");
    host.append(modules, "# mine\n");
    said(vql::bind_device, host, "01:00.0");
    CHECK(said(vql::unbind_device, host, "01:00.0").front() ==
          "0000:01:00.0: will not be bound at boot any more");
    CHECK(!vql::is_persistent(host.tree, "0000:01:00.0"));
    CHECK(vql::is_persistent(host.tree, "0000:02:00.0"));
    CHECK(lines_with("# mine") == 1);
    // Also one that is not bound now, as after a boot that found another drive there.
    CHECK(said(vql::unbind_device, host, "02:00.0").front() ==
          "0000:02:00.0: will not be bound at boot any more");
    CHECK(!vql::path_exists(rules));
    CHECK(vql::path_exists(modules)); // which somebody has changed
}

TEST_CASE("at boot the drive that was meant is taken, and no other in its place", "[device]") {
    one_drive host;
    host.run_kernel();
    const auto restore = [&](const std::string& serial) {
        return vql::restore_device(host.tree, "0000:01:00.0", serial, [](const std::string&) {});
    };
    const auto driver = [&] {
        return vql::link_name(host.tree.function("0000:01:00.0") + "/driver");
    };
    host.write(host.tree.function("0000:01:00.0") + "/driver_override",
               "vqlane\n"); // the rule's doing

    SECTION("another serial number") {
        const auto done = restore("S-other");
        REQUIRE(!done);
        CHECK_THAT(done.failure().text,
                   ContainsSubstring("is another drive now (serial number S-nvme0, not S-other)"));
        CHECK(driver() == "nvme");
        CHECK(vql::read_attribute(host.tree.function("0000:01:00.0") + "/driver_override").empty());
    }
    SECTION("in use meanwhile") {
        host.append(host.tree.proc + "/self/mountinfo", "40 27 259:7 / / rw - xfs x rw\n");
        REQUIRE(!restore("S-nvme0"));
        CHECK(driver() == "nvme");
        CHECK(vql::read_attribute(host.tree.function("0000:01:00.0") + "/driver_override").empty());
    }
    SECTION("the right one") {
        REQUIRE(restore("S-nvme0"));
        CHECK(driver() == "vqlane");
        CHECK(restore("S-nvme0")); // again is nothing new
    }
    SECTION("before any driver has it") {
        fs::remove(host.tree.function("0000:01:00.0") + "/driver");
        fs::rename(host.tree.function("0000:01:00.0") + "/nvme",
                   host.tree.function("0000:01:00.0") + "/was-nvme");
        REQUIRE(restore("S-nvme0"));
        CHECK(driver() == "vqlane");
    }
}

TEST_CASE("a drive that the module cannot have is put back", "[device]") {
    one_drive host;
    host.run_kernel();

    SECTION("the module's probe fails") {
        const std::string bind = host.tree.driver("vqlane") + "/bind";
        fs::remove(bind);
        fs::create_directory(bind); // an error for every write
        CHECK(error_of(said(vql::bind_device, host, "01:00.0")) ==
              "error: writing \"0000:01:00.0\" to " + bind +
                  ": Is a directory (the kernel log says why: dmesg)\n"
                  "0000:01:00.0 is with nvme again");
        CHECK(host.events() == lines{"unbind nvme 0000:01:00.0 override vqlane",
                                     "bind nvme 0000:01:00.0 override "});
    }
    SECTION("its device does not appear") {
        host.tree.patience = 200ms;
        fs::remove_all(host.tree.dev + "/vqlane");
        host.write(host.tree.dev + "/vqlane", ""); // in the way of the folder
        CHECK_THAT(error_of(said(vql::bind_device, host, "01:00.0")),
                   ContainsSubstring("does not appear\n0000:01:00.0 is with nvme again"));
        CHECK(host.events().size() == 4);
    }
    CHECK(vql::link_name(host.tree.function("0000:01:00.0") + "/driver") == "nvme");
}

TEST_CASE("bind wants the module loaded and no third driver", "[device]") {
    one_drive host;
    host.function("0000:02:00.0", "vfio-pci");
    CHECK_THAT(error_of(said(vql::bind_device, host, "02:00.0", true)),
               ContainsSubstring("is bound to vfio-pci"));
    fs::remove_all(host.tree.driver("vqlane"));
    CHECK_THAT(error_of(said(vql::bind_device, host, "01:00.0", true)),
               ContainsSubstring("modprobe vqlane"));
}

TEST_CASE("unbind refuses a drive that a daemon has open, but for --force", "[device]") {
    fake_host host;
    host.run_kernel();
    host.function("0000:01:00.0", "vqlane");
    host.open_in(17, "vqlaned", host.tree.vqlane_node("0000:01:00.0"));
    CHECK_THAT(error_of(said(vql::unbind_device, host, "01:00.0")),
               ContainsSubstring("nvme-0000:01:00.0 is open in vqlaned (pid 17)\n"));
    CHECK(host.events().empty());

    fs::remove_all(host.tree.driver("nvme"));
    CHECK_THAT(error_of(said(vql::unbind_device, host, "01:00.0", true)),
               ContainsSubstring("has no driver now") && ContainsSubstring("modprobe nvme"));
    CHECK(host.events() == lines{"unbind vqlane 0000:01:00.0 override "});
}

TEST_CASE("a namespace of two controllers may leave one of them, used or not", "[device]") {
    fake_host host;
    const bool multipath = GENERATE(true, false);
    const std::string second = multipath ? "nvme0n1" : "nvme1n1";
    host.controller("0000:01:00.0", "nvme0", "nqn.shared");
    host.controller("0000:02:00.0", "nvme1", "nqn.shared");
    host.ns("0000:01:00.0", "nvme0", multipath ? "nvme0c0n1" : "nvme0n1", "nvme0n1");
    host.ns("0000:02:00.0", "nvme1", multipath ? "nvme0c1n1" : "nvme1n1", second);
    // The second one's block device, which with multipath is the first one's as well.
    host.append(host.tree.proc + "/self/mountinfo",
                "40 27 0:99 / /srv rw - xfs " + host.tree.dev + "/" + second + " rw\n");
    const auto weights = [&](size_t which) {
        const auto devices = vql::list_devices(host.tree);
        REQUIRE(devices);
        std::vector<vql::objection> all;
        for (const auto& use : vql::objections((*devices)[which], *devices))
            all.push_back(use.weight);
        return all;
    };
    using enum vql::objection;
    if (multipath)
        CHECK_THAT(found(host, "nvme0n1"), ContainsSubstring("0000:01:00.0 and 0000:02:00.0"));

    CHECK(weights(0) == std::vector{unforced, note});
    CHECK(weights(1) == std::vector{multipath ? unforced : absolute, note});
    // The last path: nobody keeps it any more.
    fs::remove_all(host.tree.function("0000:01:00.0"));
    CHECK(weights(0) == std::vector{absolute});
}

} // namespace
