// SPDX-License-Identifier: GPL-2.0-only
// Whose bytes they are: a file or block device that another program uses, or that holds something
// else than a disk's bytes, and the bytes at its end.
#include "e2e.h"
#include "loop_device.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;

namespace {

constexpr uint64_t mib = 1 << 20;
constexpr uint64_t disk_bytes = 16 * mib;

// A file, and a daemon without disks that commands bring to it.
struct image_test : vhost_user_only {
    image_test()
        : vhost_user_only("its subject is a file, and any front end will do"),
          files(storage_folder()), file(files / "image"), daemon("") {
        make_file(file, disk_bytes);
    }
    temporary_directory files;
    std::string file;
    test_daemon daemon;

    static nlohmann::json add_of(const std::string& path, bool read_only = false) {
        return disk_add({{"name", "d"}, {"file", path}, {"read_only", read_only}});
    }
    std::string refusal(const std::string& path, bool read_only = false) const {
        return daemon.control().error(add_of(path, read_only));
    }
    void add(const std::string& path, bool read_only = false) const {
        daemon.control().result(add_of(path, read_only));
    }
    void remove() const { daemon.remove("d"); }
    // Can it be served now, and is it let go of then?
    void add_and_remove(bool read_only = false) const {
        add(file, read_only);
        remove();
    }
};

bool qemu_is_missing(const char* program) {
    return find_program(program).empty();
}
#define NEEDS_QEMU_UTILS()                                                                         \
    for (const char* program : {"qemu-img", "qemu-io", "qemu-system-x86_64"})                      \
        if (qemu_is_missing(program))                                                              \
    SKIP(program << " is not installed")

command_result qemu_io(const std::string& file, const std::string& command, bool read_only) {
    std::vector<std::string> arguments = {"qemu-io", "-f", "raw", "-c", command};
    if (read_only)
        arguments.emplace_back("-r");
    arguments.push_back(file);
    return run_command(arguments);
}

// A QEMU whose guest, which never runs, has the image for its disk.
class qemu_guest {
  public:
    qemu_guest(const std::string& file, bool read_only)
        : child_({"qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-S",
                  "-drive",
                  "format=raw,if=none,id=d,file=" + file + (read_only ? ",readonly=on" : ""),
                  "-device", "virtio-blk-pci,drive=d"},
                 "", files_ / "err") {
        struct stat st {};
        REQUIRE(stat(file.c_str(), &st) == 0);
        const std::string inode = ":" + std::to_string(st.st_ino) + " ";
        // Its locks are there with 201, "I let nobody else write".
        for (const deadline until(default_timeout());; usleep(5000)) {
            INFO(read_text_file(files_ / "err"));
            REQUIRE(!until.passed());
            REQUIRE(child_.running());
            std::istringstream locks(read_text_file("/proc/locks"));
            for (std::string line; std::getline(locks, line);)
                if (line.find("OFDLCK") != line.npos && line.find(inode + "201") != line.npos)
                    return;
        }
    }
    pid_t pid() const { return child_.pid(); }

  private:
    temporary_directory files_;
    child_process child_;
};

} // namespace

TEST_CASE("an image that QEMU writes is not served, and who has it is said", "[image]") {
    NEEDS_QEMU_UTILS();
    image_test t;
    {
        qemu_guest writer(t.file, false);
        for (bool read_only : {false, true})
            CHECK_THAT(t.refusal(t.file, read_only),
                       ContainsSubstring(t.file + ": in use by pid " +
                                         std::to_string(writer.pid()) + " (qemu-system-x86)"));
    }
    t.add_and_remove();
    {
        qemu_guest reader(t.file, true);
        CHECK_THAT(t.refusal(t.file), ContainsSubstring(std::to_string(reader.pid())));
        t.add_and_remove(true); // two that only read
    }
    // As another kind of server has it: it lets others write, but writes itself.
    const child_process other({"qemu-storage-daemon", "--blockdev",
                               "driver=file,node-name=n,filename=" + t.file, "--export",
                               "vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,"
                               "addr.path=" +
                                   (t.files / "qsd.sock"),
                               "--pidfile", t.files / "pid"},
                              "", "");
    for (const deadline until(default_timeout()); access((t.files / "pid").c_str(), F_OK) != 0;) {
        REQUIRE(!until.passed());
        usleep(2000);
    }
    for (bool read_only : {false, true})
        CHECK_THAT(t.refusal(t.file, read_only), ContainsSubstring("(qemu-storage-d"));
}

TEST_CASE("QEMU does not open an image to write it that is served", "[image]") {
    NEEDS_QEMU_UTILS();
    image_test t;
    const auto refused = [](const command_result& r) {
        INFO(r.out << r.err);
        CHECK(r.status != 0);
        CHECK_THAT(r.out + r.err, ContainsSubstring(" lock"));
    };
    const auto guest = [&](const char* more) {
        return run_command({"qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel",
                            "tcg", "-S", "-drive", "format=raw,if=none,id=d,file=" + t.file + more,
                            "-device", "virtio-blk-pci,drive=d"});
    };
    for (bool read_only : {false, true}) {
        t.add(t.file, read_only);
        refused(qemu_io(t.file, "write 0 4k", false));
        refused(guest(""));
        if (!read_only) {
            refused(guest(",readonly=on"));
            refused(run_command({"qemu-storage-daemon", "--blockdev",
                                 "driver=file,node-name=n,filename=" + t.file, "--export",
                                 "vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,"
                                 "addr.path=" +
                                     (t.files / "qsd.sock")}));
        }
        t.remove();
        CHECK(qemu_io(t.file, "write 0 4k", false).status == 0);
    }
    t.add(t.file, true);
    qemu_guest reader(t.file, true); // two that only read
}

TEST_CASE("a file that is only read is shared between daemons, and one that is written is not",
          "[image]") {
    image_test t;
    std::vector<std::byte> data(disk_bytes, std::byte{7});
    write_text_file(t.file, std::string(disk_bytes, '\7'));
    const std::string config = file_target("t", t.file) + disk_on("d", "t", "read_only = true\n");
    test_daemon first(config);
    auto second = std::make_unique<test_daemon>(config);
    for (const test_daemon* daemon : {&first, second.get()}) {
        test_guest guest(daemon->device("d"));
        std::vector<std::byte> back(disk_bytes);
        REQUIRE(guest.driver.read(0, back).status == blk_ok);
        CHECK(back == data);
    }
    CHECK_THAT(t.refusal(t.file), ContainsSubstring("in use by pid"));
    t.add_and_remove(true);
    first.kill();
    first.start(); // what it held is no more
    // Within one daemon: its target is open for reading only, so nobody writes it.
    CHECK_THAT(first.control().error({{"op", "disk_add"}, {"name", "e"}, {"target", "t"}}),
               ContainsSubstring("reading only"));
    second.reset();
    first.terminate();
    first.start();
    CHECK_THAT(t.refusal(t.file), ContainsSubstring(std::to_string(first.pid())));
}

TEST_CASE("a daemon that was killed with requests under way is no obstacle to the next",
          "[image]") {
    image_test t;
    test_daemon daemon(file_target("t", t.file) + disk_on("d", "t"));
    guest_options options;
    options.blk.depth = 16;
    test_guest guest(daemon.device("d"), options);
    const uint64_t buffer = guest.memory->allocate(4096);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 16; i++) {
            blk_request* r = guest.driver.acquire(0);
            REQUIRE(r);
            guest.driver.shape(*r, blk_op::write, uint64_t(i) * 8, buffer, 4096);
            REQUIRE(guest.driver.submit(*r));
        }
        guest.driver.ring(0);
        daemon.kill();
        daemon.start();
        guest.daemon_is_back();
        for (int i = 0; i < 16; i++) {
            blk_request& r = guest.driver.next();
            CHECK(r.ok());
            guest.driver.release(r);
        }
    }
}

TEST_CASE("a file behind a loop device is in use", "[image]") {
    image_test t;
    const std::string other_name = t.files / "another name";
    std::filesystem::create_hard_link(t.file, other_name);
    {
        loop_device loop(t.file);
        if (!loop.refusal().empty())
            SKIP(loop.refusal());
        for (const std::string& path : {t.file, other_name})
            for (bool read_only : {false, true})
                CHECK_THAT(t.refusal(path, read_only), ContainsSubstring(path +
                                                                         ": in use by loop "
                                                                         "device " +
                                                                         loop.path()));
        // The device itself is free, and the file behind it stays in use.
        t.add(loop.path());
        CHECK_THAT(t.daemon.control().error(disk_add({{"name", "e"}, {"file", t.file}})),
                   ContainsSubstring("loop"));
        t.remove();
    }
    t.add_and_remove();
    loop_device loop(t.file, {"--read-only"});
    REQUIRE(loop.refusal().empty());
    CHECK_THAT(t.refusal(t.file), ContainsSubstring("loop"));
    t.add_and_remove(true); // neither writes
}

TEST_CASE("a block device that is only read is shared, and one that is mounted is not served",
          "[image]") {
    image_test t;
    loop_device loop(t.file);
    if (!loop.refusal().empty())
        SKIP(loop.refusal());
    const std::string config =
        file_target("t", loop.path()) + disk_on("d", "t", "read_only = true\n");
    {
        test_daemon first(config), second(config);
        for (const test_daemon* daemon : {&first, &second}) {
            test_guest guest(daemon->device("d"));
            std::vector<std::byte> back(4096);
            CHECK(guest.driver.read(0, back).status == blk_ok);
        }
        CHECK_THAT(t.refusal(loop.path()), ContainsSubstring("in use by pid"));
    }
    // What the daemons' rings had open goes a moment after the daemons.
    command_result made;
    for (const deadline until(default_timeout()); made.status != 0 && !until.passed();)
        made = run_command({"mkfs.ext4", "-q", loop.path()});
    if (made.status != 0)
        SKIP("no file system can be made here: " << made.err);
    temporary_directory mounted;
    if (run_command({"mount", loop.path(), mounted.path()}).status != 0)
        SKIP("nothing can be mounted here");
    for (bool read_only : {false, true})
        CHECK_THAT(t.refusal(loop.path(), read_only),
                   ContainsSubstring("mounted on " + mounted.path()));
    CHECK(run_command({"umount", mounted.path()}).status == 0);
    t.add(loop.path());
}

TEST_CASE("an image of another format is refused by its name, unless it is said to be raw",
          "[image]") {
    NEEDS_QEMU_UTILS();
    image_test t;
    struct {
        const char* format;
        const char* options;
        const char* name;
    } const formats[] = {
        {"qcow2", "compat=1.1", "a qcow2 image"},
        {"qcow", "encryption=off", "a qcow image"},
        {"qed", "cluster_size=65536", "a QED image"},
        {"vmdk", "subformat=monolithicSparse", "a VMDK image"},
        {"vmdk", "subformat=twoGbMaxExtentFlat", "a VMDK image"},
        {"vhdx", "subformat=dynamic", "a VHDX image"},
        {"vpc", "subformat=dynamic", "a VHD image"},
        {"vpc", "subformat=fixed", "a VHD image"},
        {"vdi", "static=off", "a VDI image"},
        {"parallels", "cluster_size=1048576", "a Parallels image"},
    };
    for (const auto& f : formats) {
        INFO(f.format << " " << f.options);
        const std::string path = t.files / "other";
        const auto made =
            run_command({"qemu-img", "create", "-q", "-f", f.format, "-o", f.options, path, "16M"});
        INFO(made.err);
        REQUIRE(made.status == 0);
        for (bool read_only : {false, true}) {
            const std::string why = t.refusal(path, read_only);
            CHECK_THAT(why, ContainsSubstring(f.name));
            CHECK_THAT(why, ContainsSubstring("format raw"));
        }
        nlohmann::json raw = t.add_of(path);
        raw["format"] = "raw";
        t.daemon.control().result(raw);
        t.remove();
        std::filesystem::remove(path);
    }
    CHECK_THAT(t.daemon.control().error(
                   {{"op", "disk_add"}, {"name", "d"}, {"file", t.file}, {"format", "qcow2"}}),
               ContainsSubstring("\"raw\""));
}

TEST_CASE("a block device that is part of a pool is refused; a file may hold a guest's pool",
          "[image]") {
    image_test t;
    std::string bytes(disk_bytes, '\0');
    bytes.replace(0x218, 8, "LVM2 001");
    write_text_file(t.file, bytes);
    t.add_and_remove();
    loop_device loop(t.file);
    if (!loop.refusal().empty())
        SKIP(loop.refusal());
    CHECK_THAT(t.refusal(loop.path()),
               ContainsSubstring("an LVM physical volume") && ContainsSubstring("format raw"));
    nlohmann::json raw = t.add_of(loop.path());
    raw["format"] = "raw";
    t.daemon.control().result(raw);
}

TEST_CASE("a block device that is read-only is read, and its disk has to be", "[image]") {
    image_test t;
    loop_device loop(t.file, {"--read-only"});
    if (!loop.refusal().empty())
        SKIP(loop.refusal());
    CHECK_THAT(t.refusal(loop.path()), ContainsSubstring("reading only"));
    nlohmann::json add = t.add_of(loop.path());
    add["read_only"] = true;
    t.daemon.control().result(add);
}

TEST_CASE("what a guest wrote is no reason to refuse its disk when the daemon is back", "[image]") {
    image_test t;
    const std::string config = file_target("t", t.file) + disk_on("d", "t");
    test_daemon daemon(config);
    test_guest guest(daemon.device("d"));
    std::vector<std::byte> sector(512);
    std::memcpy(sector.data(), "QFI\xfb\0\0\0\3", 8);
    REQUIRE(guest.driver.write(0, sector).status == blk_ok);
    REQUIRE(guest.driver.flush().status == blk_ok);
    for (bool kill : {true, false}) {
        kill ? daemon.kill() : void(daemon.terminate());
        daemon.start();
        guest.daemon_is_back();
        std::vector<std::byte> back(512);
        REQUIRE(guest.driver.read(0, back).status == blk_ok);
        CHECK(back == sector);
    }
    // Under its name there is another file now.
    daemon.terminate();
    const std::string copy = t.files / "copy";
    std::filesystem::copy_file(t.file, copy);
    std::filesystem::rename(copy, t.file);
    CHECK_THAT(t.refusal(t.file), ContainsSubstring("qcow2"));

    // One that is smaller than the disk was is no guest's work.
    daemon.terminate();
    std::filesystem::remove(t.file);
    make_file(t.file, disk_bytes);
    daemon.start();
    CHECK(daemon.terminate() == 0);
    write_text_file(t.file, std::string("QFI\xfb\0\0\0\3", 8) + std::string(4096, '\0'));
    daemon.start();
    CHECK_THAT(daemon.control().result({{"op", "disk_list"}}).at(0).at("problem"),
               ContainsSubstring("qcow2"));
    daemon.terminate();

    // A disk that was removed is forgotten.
    const std::string other = t.files / "other";
    make_file(other, disk_bytes);
    t.add(other);
    t.remove();
    write_text_file(other, std::string("QFI\xfb\0\0\0\3", 8) + std::string(4096, '\0'));
    CHECK_THAT(t.refusal(other), ContainsSubstring("qcow2"));

    // One that was refused was never a guest's.
    const std::string empty = t.files / "empty";
    write_text_file(empty, "");
    CHECK_THAT(t.refusal(empty), ContainsSubstring("empty"));
    write_text_file(empty, std::string("QFI\xfb\0\0\0\3", 8) + std::string(4096, '\0'));
    CHECK_THAT(t.refusal(empty), ContainsSubstring("qcow2"));
}

TEST_CASE("the last bytes of a file that is no multiple of 512 are there", "[image]") {
    image_test t;
    const bool read_only = GENERATE(false, true);
    std::string bytes(mib + 700, 'x');
    bytes.back() = 'y';
    write_text_file(t.file, bytes);
    test_daemon daemon(file_target("t", t.file) +
                       disk_on("d", "t", read_only ? "read_only = true\n" : ""));
    CHECK(daemon.wait_log(std::to_string(mib + 700)));
    CHECK(std::filesystem::file_size(t.file) == mib + 700); // not ours to change
    test_guest guest(daemon.device("d"));
    const uint64_t sectors = mib / 512 + 2;
    REQUIRE(guest.driver.capacity() == sectors);
    const auto expect = [&](uint64_t first, std::string want) {
        std::vector<std::byte> back((sectors - first) * 512, std::byte{0x55});
        want.resize(back.size(), '\0');
        REQUIRE(guest.driver.read(first, back).status == blk_ok);
        CHECK(std::memcmp(back.data(), want.data(), want.size()) == 0);
    };
    for (uint64_t before : {1, 2, 3, 8, 200})
        expect(sectors - before, bytes.substr((sectors - before) * 512));
    // The rest of the sector lies in another segment, at an odd address.
    blk_request* r = guest.driver.acquire(0);
    guest.driver.shape(*r, blk_op::read, sectors - 2, guest.memory->allocate(4096) + 7, 1024);
    CHECK(guest.driver.execute(*r).status == blk_ok);
    if (read_only)
        return;
    std::vector<std::byte> sector(512, std::byte{'z'});
    REQUIRE(guest.driver.write(sectors - 1, sector).status == blk_ok);
    CHECK(std::filesystem::file_size(t.file) == sectors * 512);
    expect(sectors - 1, std::string(512, 'z'));
}

} // namespace vql::guest
