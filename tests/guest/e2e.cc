// SPDX-License-Identifier: GPL-2.0-only
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <linux/fs.h>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr const char* drive_name = "drive"; // the target
constexpr uint64_t drive_align = 1 << 20;

void zero_drive(uint64_t offset, uint64_t bytes) {
    std::string path = environment("VQL_E2E_NVME");
    unique_fd drive(open(path.c_str(), O_RDWR | O_CLOEXEC));
    uint64_t range[2] = {offset, bytes};
    if (!drive || ioctl(drive.get(), BLKZEROOUT, range) != 0) {
        throw_errno("cannot zero a part of " + path);
    }
}

// Of a block device, past the kernel's page cache: others write to it.
unique_fd open_to_compare(const std::string& path) {
    struct stat info {};
    bool is_device = stat(path.c_str(), &info) == 0 && S_ISBLK(info.st_mode);
    unique_fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | (is_device ? O_DIRECT : 0)));
    if (!file) {
        throw_errno("cannot open " + path);
    }
    return file;
}

} // namespace

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    if (value == nullptr) {
        throw guest_error(std::string("this needs ") + name);
    }
    return value;
}

bool vdpa_world() {
    static const bool vdpa = [] {
        const char* given = std::getenv("VQL_E2E");
        if (given != nullptr && std::string_view(given) != "vdpa" &&
            std::string_view(given) != "vhost-user") {
            throw guest_error(std::string("VQL_E2E is '") + given + "', want vdpa or vhost-user");
        }
        return given != nullptr && std::string_view(given) == "vdpa";
    }();
    return vdpa;
}

bool drive_world() {
    return vdpa_world() || std::getenv("VQL_E2E_BDF") != nullptr;
}

std::string storage_folder() {
    // In the virtual machine that has the drive the build folder is read-only.
    return drive_world() ? "/tmp" : std::filesystem::absolute(built_program(".")).string();
}

void let_case(const std::string& word) {
    std::string done = environment("VQL_OUT") + "/did." + word;
    unlink(done.c_str());
    std::printf("\ndo %s\n", word.c_str()); // report in tests/vm/host-common.sh reads it
    std::fflush(stdout);
    deadline until(default_timeout());
    while (access(done.c_str(), F_OK) != 0) {
        if (until.passed()) {
            throw timeout_error("the case does not say that it did " + word);
        }
        usleep(1000);
    }
}

std::string victim_address(unsigned n) {
    std::istringstream victims(environment("VQL_E2E_VICTIMS"));
    std::string bdf;
    for (unsigned i = 0; i <= n; i++) {
        victims >> bdf;
    }
    REQUIRE(victims);
    return bdf;
}

std::string victim_target(unsigned n, unsigned nsid) {
    return "[[target]]\nname = \"victim" + std::to_string(n) +
           (nsid == 1 ? "" : "-" + std::to_string(nsid)) + "\"\ntype = \"nvme\"\ndevice = \"" +
           victim_address(n) + "\"\nnamespace = " + std::to_string(nsid) + "\n";
}

std::string victim_disk(unsigned n, uint64_t bytes) {
    std::string name = "victim" + std::to_string(n);
    return victim_target(n) + disk_of(name, "extents = [ { target = \"" + name + "\", length = " +
                                                std::to_string(bytes) + " } ]\nqueues = 2\n");
}

guest_options two_queue_guest() {
    guest_options options;
    options.blk.queues = 2;
    options.blk.depth = 16;
    options.memory_bytes = 64 << 20;
    return options;
}

void needs_vdpa_world() {
    if (!vdpa_world()) {
        SKIP("needs VQL_E2E=vdpa");
    }
}

vhost_user_only::vhost_user_only(const char* why) {
    if (vdpa_world()) {
        SKIP("not for vDPA devices: " << why);
    }
}

uint64_t test_seed(uint64_t salt) {
    static const uint64_t seed = [] {
        const char* given = std::getenv("VQL_SEED");
        uint64_t value =
            given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device()();
        std::printf("seed: VQL_SEED=%llu repeats this run's random choices\n",
                    static_cast<unsigned long long>(value));
        std::fflush(stdout);
        return value;
    }();
    return seed + salt * 0x10001;
}

uint64_t scaled(uint64_t n, uint64_t least) {
    const char* given = std::getenv("VQL_TEST_SCALE");
    double scale = given != nullptr ? std::strtod(given, nullptr) : sanitized_build() ? 0.2 : 1.0;
    return std::max(least, static_cast<uint64_t>(static_cast<double>(n) * scale));
}

test_daemon::~test_daemon() noexcept(false) {
    std::string wrong = complaint();
    if (std::uncaught_exceptions() != 0) {
        if (!wrong.empty()) {
            WARN(wrong); // the test has failed already; this may be why
        }
        try {
            remove_disks();
        } catch (const std::exception& error) {
            WARN("the disks stay in the module: " << error.what());
        }
        return;
    }
    CHECK(wrong == "");
    if (wrong.empty()) {
        remove_disks();
    }
    if (wrong.empty() && running()) {
        // A leak checker reports at the end, so it needs an end.
        CHECK(terminate() == 0);
        CHECK(complaint() == "");
    }
}

// Disks of the module would outlive the daemon.
void test_daemon::remove_disks() {
    if (!vdpa_world()) {
        return;
    }
    if (!running()) {
        start();
    }
    for (const nlohmann::json& disk : control().result({{"op", "disk_list"}})) {
        control().result({{"op", "disk_rm"}, {"name", disk.at("name")}, {"force", true}});
    }
}

std::string test_daemon::device(const std::string& disk) const {
    if (!vdpa_world()) {
        return socket(disk);
    }
    for (const deadline until(default_timeout());;) {
        const nlohmann::json found = entry(disk);
        if (found.is_null())
            throw guest_error("the daemon has no disk " + disk);
        if (found.at("state") == "ready")
            return found.at("device");
        if (until.passed())
            throw timeout_error("disk " + disk + " does not get ready: " + found.dump());
        usleep(1000);
    }
}

nlohmann::json test_daemon::entry(const std::string& disk) const {
    for (const nlohmann::json& one : control().result({{"op", "disk_list"}}))
        if (one.at("name") == disk)
            return one;
    return nullptr;
}

void test_daemon::remove(const std::string& disk) const {
    const deadline until(default_timeout());
    const auto connected = [&] {
        const nlohmann::json is = entry(disk);
        return !is.is_null() && is.at("connected") == true;
    };
    while (connected() && !until.passed())
        usleep(1000);
    control().result({{"op", "disk_rm"}, {"name", disk}});
}

std::future<void> test_daemon::remove_by_force(const std::string& disk) const {
    return std::async(std::launch::async, [this, disk] {
        control().result({{"op", "disk_rm"}, {"name", disk}, {"force", true}});
    });
}

std::string file_target(const std::string& name, const std::string& path) {
    return "[[target]]\nname = \"" + name + "\"\ntype = \"uring\"\npath = \"" + path + "\"\n";
}

std::string null_target(const std::string& name, const std::string& size) {
    return "[[target]]\nname = \"" + name + "\"\ntype = \"null\"\nsize = \"" + size + "\"\n";
}

std::string lane() {
    const char* word = std::getenv("VQL_E2E_LANE");
    return word == nullptr ? "poll" : word;
}

std::string disk_of(const std::string& name, const std::string& lines) {
    std::string front;
    if (vdpa_world()) {
        front = "frontend = \"vdpa\"\n";
        if (lines.find("lane = ") == std::string::npos) {
            front += "lane = \"" + lane() + "\"\n";
        }
    }
    return "[[disk]]\nname = \"" + name + "\"\n" + front + lines + "\n";
}

std::string disk_on(const std::string& name, const std::string& target, const std::string& extra) {
    return disk_of(name, "target = \"" + target + "\"\n" + extra);
}

nlohmann::json disk_add(nlohmann::json request) {
    request["op"] = "disk_add";
    if (vdpa_world()) {
        request["frontend"] = "vdpa";
        request["lane"] = lane();
    }
    return request;
}

void test_storage::add(const std::string& name, uint64_t bytes) {
    if (!drive_world()) {
        add_file(name, bytes);
        return;
    }
    zero_drive(drive_used_, bytes);
    pieces_.push_back({name, bytes, true, drive_used_});
    drive_used_ += (bytes + drive_align - 1) / drive_align * drive_align;
}

void test_storage::add_file(const std::string& name, uint64_t bytes) {
    make_file(path(name), bytes);
    pieces_.push_back({name, bytes, false, 0});
}

const test_storage::piece& test_storage::named(const std::string& name) const {
    for (const piece& candidate : pieces_) {
        if (candidate.name == name) {
            return candidate;
        }
    }
    throw guest_error("the test's storage has no part " + name);
}

std::string test_storage::target_of(const std::string& name) const {
    return named(name).on_drive ? drive_name : name;
}

std::string test_storage::targets() const {
    std::string tables;
    if (std::any_of(pieces_.begin(), pieces_.end(), [](const piece& p) { return p.on_drive; })) {
        tables = std::string("[[target]]\nname = \"") + drive_name +
                 "\"\ntype = \"nvme\"\ndevice = \"" + environment("VQL_E2E_BDF") +
                 "\"\nnamespace = 1\n";
    }
    for (const piece& part : pieces_) {
        tables += part.on_drive ? "" : file_target(part.name, path(part.name));
    }
    return tables;
}

std::string test_storage::disk(const std::string& disk, const std::string& name,
                               const std::string& extra) const {
    const piece& all = named(name);
    return all.on_drive
               ? disk_of(disk, "extents = [ " + extent(name, 0, all.bytes) + " ]\n" + extra)
               : disk_on(disk, name, extra);
}

std::string test_storage::extent(const std::string& name, uint64_t offset, uint64_t bytes) const {
    return "{ target = \"" + target_of(name) +
           "\", offset = " + std::to_string(named(name).offset + offset) +
           ", length = " + std::to_string(bytes) + " }";
}

backing_extent test_storage::part(const std::string& name) const {
    return part(name, 0, named(name).bytes);
}

backing_extent test_storage::part(const std::string& name, uint64_t offset, uint64_t bytes) const {
    const piece& all = named(name);
    return {all.on_drive ? environment("VQL_E2E_NVME") : path(name), all.offset + offset, bytes};
}

uint64_t compare_backing(std::span<const std::byte> model,
                         const std::vector<backing_extent>& extents) {
    constexpr size_t most = 1 << 20;
    std::unique_ptr<std::byte, void (*)(void*)> buffer(
        static_cast<std::byte*>(std::aligned_alloc(4096, most)), std::free);
    uint64_t at = 0;
    for (const backing_extent& extent : extents) {
        unique_fd file = open_to_compare(extent.path);
        for (uint64_t done = 0; done < extent.bytes;) {
            size_t bytes = std::min<size_t>(most, extent.bytes - done);
            ssize_t got =
                pread(file.get(), buffer.get(), bytes, static_cast<off_t>(extent.offset + done));
            if (got <= 0) {
                throw guest_error("cannot read " + extent.path);
            }
            const std::byte* expected = model.data() + at;
            if (std::memcmp(buffer.get(), expected, static_cast<size_t>(got)) != 0) {
                return at + static_cast<uint64_t>(
                                std::mismatch(buffer.get(), buffer.get() + got, expected).first -
                                buffer.get());
            }
            done += static_cast<uint64_t>(got);
            at += static_cast<uint64_t>(got);
        }
    }
    return at;
}

void leave_for_case(std::span<const std::byte> model, const backing_extent& extent) {
    const char* folder = std::getenv("VQL_E2E_LEAVE");
    if (folder == nullptr) {
        return; // nobody looks
    }
    std::ofstream file(std::string(folder) + "/" + std::to_string(extent.offset),
                       std::ios::binary | std::ios::trunc);
    file.write(reinterpret_cast<const char*>(model.data()),
               static_cast<std::streamsize>(extent.bytes));
    file.close();
    REQUIRE(file);
}

std::unique_ptr<transport> open_device(const std::string& path, const vhost_user_options& options) {
    if (path.starts_with("/dev/")) {
        return std::make_unique<vhost_vdpa_transport>(path);
    }
    return std::make_unique<vhost_user_transport>(path, options);
}

test_guest::test_guest(const std::string& path, const guest_options& options)
    : memory(guest_memory::in_pieces(options.memory_base, options.memory_bytes / options.slots,
                                     options.slots)),
      link(open_device(path, options.vhost)), device(*link), driver(*memory, device, options.blk) {
    if (options.start) {
        driver.start();
    }
}

void test_guest::daemon_is_back() {
    if (!device.outlives_daemon()) {
        device.reconnect();
        driver.resume();
    }
}

bool test_guest::disk_lost(milliseconds timeout) {
    if (!device.outlives_daemon()) {
        return vhost_user().client().dropped(timeout);
    }
    deadline until(timeout);
    while (!until.passed()) {
        for (unsigned queue = 0; queue < driver.options().queues; queue++) {
            while (blk_request* request = driver.poll(queue)) {
                driver.release(*request);
            }
        }
        std::array<std::byte, sector_bytes> sector;
        if (driver.in_flight() == 0 && driver.read(0, sector).status == blk_ioerr) {
            return true;
        }
    }
    return false;
}

bystander_options::bystander_options() {
    guest.blk.depth = 8;
    guest.memory_bytes = 16 << 20;
    guest.blk.interrupts = true;
    run.max_bytes = 32 << 10;
}

bystander::bystander(const std::string& path, uint64_t disk_bytes, uint64_t seed,
                     const bystander_options& options)
    : options_(options) {
    guest_ = std::make_unique<test_guest>(path, options_.guest);
    thread_ = std::thread([this, disk_bytes, seed] { serve(disk_bytes, seed); });
}

bystander::~bystander() {
    stop();
}

void bystander::serve(uint64_t disk_bytes, uint64_t seed) {
    try {
        std::vector<std::byte> model(disk_bytes);
        model_run run(guest_->driver, model, seed, options_.run);
        while (!stop_) {
            run.run(options_.batch);
            done_ = run.counts().total();
            usleep(options_.pause_us);
        }
    } catch (const std::exception& error) {
        error_ = error.what();
        failed_ = true;
    }
}

bool bystander::goes_on(uint64_t more, milliseconds timeout) {
    deadline until(timeout);
    uint64_t goal = done_ + more;
    while (done_ < goal) {
        if (failed_ || until.passed()) {
            return false;
        }
        usleep(500);
    }
    return true;
}

std::string bystander::stop() {
    stop_ = true;
    if (thread_.joinable()) {
        thread_.join();
    }
    return failed_ ? error_ : "";
}

} // namespace vql::guest
