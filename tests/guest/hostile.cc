// SPDX-License-Identifier: GPL-2.0-only
#include "hostile.h"

#include <filesystem>
#include <fstream>
#include <unistd.h>

namespace vql::guest {
namespace {

std::string hostile_configuration(test_storage& storage) {
    storage.add("v", hostile_disk_bytes);
    storage.add("o", hostile_disk_bytes);
    return storage.targets() +
           storage.disk("victim", "v",
                        "queues = " + std::to_string(victim_queues) +
                            "\nqueue_size = " + std::to_string(victim_queue_size) + "\n") +
           storage.disk("other", "o");
}

} // namespace

guest_options small_guest() {
    guest_options options;
    options.memory_bytes = 4 << 20;
    options.blk.queues = victim_queues;
    options.blk.queue_size = 64;
    options.blk.depth = 16;
    return options;
}

hostile_setup::hostile_setup()
    : daemon_(hostile_configuration(storage_)), victim_(daemon_.device("victim")),
      other_(std::make_unique<bystander>(daemon_.device("other"), hostile_disk_bytes,
                                         test_seed(600))) {
    check_serving();
    before_ = count_resources();
}

hostile_setup::resources hostile_setup::count_resources() const {
    resources now{0, 0};
    std::string proc = "/proc/" + std::to_string(daemon_.pid());
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(proc + "/fd")) {
        now.descriptors++;
    }
    std::ifstream maps(proc + "/maps");
    for (std::string line; std::getline(maps, line);) {
        bool of_guest = line.find("/memfd:") != std::string::npos ||
                        line.find("vqlane-mspace") != std::string::npos;
        now.mappings += of_guest ? 1 : 0;
    }
    return now;
}

void hostile_setup::check_alive() {
    if (!daemon_.running()) {
        throw guest_error("the daemon died:\n" + daemon_.log());
    }
    open_device(victim())->device_features();
    if (!other_->goes_on(1)) {
        throw guest_error("the other disk's I/O stopped: " + other_->stop());
    }
}

void hostile_setup::check_serving() {
    test_guest guest(victim(), small_guest());
    std::vector<std::byte> data(16384);
    random_source(test_seed(601)).fill(data);
    std::vector<std::byte> back(data.size());
    for (unsigned queue = 0; queue < victim_queues; queue++) {
        if (guest.driver.write(8 * queue, data, queue).status != blk_ok ||
            guest.driver.read(8 * queue, back, queue).status != blk_ok || back != data) {
            throw guest_error("the disk does not serve its next client");
        }
    }
    guest.device.disconnect();
    check_alive();
}

void hostile_setup::check_nothing_leaked() {
    check_alive();
    // The last client's descriptors go when the daemon has let it go.
    deadline until(default_timeout());
    resources now = count_resources();
    while (now.descriptors > before_.descriptors || now.mappings > before_.mappings) {
        if (until.passed()) {
            throw guest_error(
                "the daemon had " + std::to_string(before_.descriptors) + " descriptors and " +
                std::to_string(before_.mappings) + " mappings of guests, and now has " +
                std::to_string(now.descriptors) + " and " + std::to_string(now.mappings));
        }
        usleep(1000);
        now = count_resources();
    }
}

attacker::attacker(const std::string& socket, bool running) {
    if (running) {
        guest = std::make_unique<test_guest>(socket, small_guest());
        return;
    }
    plain.emplace(socket);
    plain->set_protocol_features(plain->get_protocol_features());
}

bool refused_or_dropped(vhost_user_client& client) {
    try {
        vu_message reply = client.receive();
        switch (reply.header.request) {
        case vu_get_config: return reply.payload.empty();
        case vu_get_inflight_fd: return reply.as<vu_inflight>().bytes == 0;
        default: return reply.payload.size() == sizeof(uint64_t) && reply.as<uint64_t>() != 0;
        }
    } catch (const disconnected&) {
        return true;
    } catch (const timeout_error&) {
        return false;
    }
}

} // namespace vql::guest
