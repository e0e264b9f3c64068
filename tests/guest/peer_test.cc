// SPDX-License-Identifier: GPL-2.0-only
// The test driver against a device that others wrote: what fails here is the driver's fault.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <csignal>
#include <filesystem>
#include <unistd.h>

namespace vql::guest {
namespace {

// qemu-storage-daemon with one export on a file: vhost-user-blk, or in the vDPA world VDUSE, which
// needs the modules vduse and vhost_vdpa.
class storage_daemon {
  public:
    storage_daemon(uint64_t bytes, unsigned queues) {
        make_file(image(), bytes);
        child_ = std::make_unique<child_process>(
            std::vector<std::string>{
                "qemu-storage-daemon", "--blockdev",
                "driver=file,node-name=disk,filename=" + image() + ",discard=unmap", "--export",
                "id=export,node-name=disk,writable=on,num-queues=" + std::to_string(queues) +
                    (vdpa_world() ? ",type=vduse-blk,name=" + name_ + ",queue-size=128,serial=vduse"
                                  : ",type=vhost-user-blk,addr.type=unix,addr.path=" + socket())},
            directory_ / "log", directory_ / "log");
        if (vdpa_world()) {
            add_vdpa_device();
        }
    }
    storage_daemon(const storage_daemon&) = delete;
    storage_daemon& operator=(const storage_daemon&) = delete;
    ~storage_daemon() {
        if (vdpa_world()) {
            run_command({"vdpa", "dev", "del", name_});
            child_->send_signal(SIGTERM); // then it takes its device with it
            child_->wait();
        }
    }
    std::string image() const { return directory_ / "image"; }
    std::string socket() const { return directory_ / "socket"; }
    // As test_daemon::device().
    std::string device() const { return vdpa_world() ? node_ : socket(); }
    bool running() const { return child_->running(); }

  private:
    void add_vdpa_device() {
        const std::string in_sysfs = "/sys/bus/vdpa/devices/" + name_;
        deadline until(default_timeout());
        // Once the daemon has made it. vhost_vdpa binds by itself where virtio_vdpa is not loaded.
        while (run_command({"vdpa", "dev", "add", "name", name_, "mgmtdev", "vduse"}).status != 0) {
            if (until.passed() || !child_->running()) {
                throw guest_error("no VDUSE device: " + read_text_file(directory_ / "log"));
            }
            usleep(10000);
        }
        for (const auto& entry : std::filesystem::directory_iterator(in_sysfs)) {
            if (entry.path().filename().string().starts_with("vhost-vdpa-")) {
                node_ = "/dev/" + entry.path().filename().string();
                return;
            }
        }
        throw guest_error(name_ + " was not bound to vhost_vdpa");
    }

    temporary_directory directory_;
    std::string name_ = "vql-peer";
    std::string node_;
    std::unique_ptr<child_process> child_;
};

} // namespace

TEST_CASE("the test driver does verified random I/O on qemu-storage-daemon", "[peer]") {
    if (find_program("qemu-storage-daemon").empty()) {
        SKIP("qemu-storage-daemon is not installed");
    }
    if (vdpa_world() && !std::filesystem::exists("/dev/vduse/control")) {
        SKIP("the module vduse is not loaded");
    }
    unsigned queues = GENERATE(1u, 4u);
    bool event_idx = GENERATE(false, true);
    bool interrupts = GENERATE(false, true);
    constexpr uint64_t bytes = 32 << 20;
    storage_daemon server(bytes, queues);
    guest_options options;
    options.slots = 8;
    options.blk.queues = queues;
    options.blk.depth = 12;
    options.blk.queue_size = 64;
    options.blk.event_idx = event_idx;
    options.blk.interrupts = interrupts;
    options.blk.check_failed_used_bytes = false;
    test_guest guest(server.device(), options);
    std::vector<std::byte> model(bytes);
    run_options run_options;
    run_options.max_bytes = 64 << 10;
    // libvhost-user refuses descriptors without a length.
    run_options.layout.zero_length = false;
    model_run run(guest.driver, model, test_seed(), run_options);
    run.run(scaled(3000));
    CHECK(run.counts().total() == scaled(3000));
    CHECK(run.counts().read.count > 0);
    CHECK(run.counts().write.count > 0);
    CHECK(compare_backing(model, {{server.image(), 0, bytes}}) == bytes);
    std::string id;
    CHECK(guest.driver.get_id(id).status == blk_ok);
    CHECK(id == (vdpa_world() ? "vduse" : "vhost_user_blk"));
    if (!vdpa_world()) { // VDUSE cannot suspend
        guest.driver.stop();
    }
    CHECK(server.running());
}

} // namespace vql::guest
