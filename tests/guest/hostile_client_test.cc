// SPDX-License-Identifier: GPL-2.0-only
// Clients that break the vhost-user protocol: the daemon drops them, or answers with an error, and
// serves on.
#include "hostile.h"

#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace vql::guest {
namespace {

// The forms in which a request is right.
struct request_form {
    uint32_t request;
    std::vector<uint32_t> lengths;
    unsigned min_fds;
    unsigned max_fds;
};

// Of no regions: what lies behind the two counts is not looked at. (Too short for the regions that
// it says it has is a test of its own.)
std::vector<uint32_t> table_lengths() {
    std::vector<uint32_t> lengths;
    for (uint32_t n = 8; n <= sizeof(vu_mem_table); n++) {
        lengths.push_back(n);
    }
    return lengths;
}

std::vector<uint32_t> config_lengths() {
    std::vector<uint32_t> lengths;
    for (uint32_t n = 0; n <= 256; n++) {
        lengths.push_back(12 + n);
    }
    return lengths;
}

const std::vector<request_form>& forms() {
    static const std::vector<request_form> all = {
        {vu_get_features, {0}, 0, 0},
        {vu_set_features, {8}, 0, 0},
        {vu_set_owner, {0}, 0, 0},
        {vu_reset_owner, {0}, 0, 0},
        {vu_set_mem_table, table_lengths(), 0, vu_max_regions},
        {vu_set_log_base, {16}, 1, 1},
        {vu_set_log_fd, {0, 8}, 1, 1}, // QEMU sends a u64 along
        {vu_set_vring_num, {8}, 0, 0},
        {vu_set_vring_addr, {40}, 0, 0},
        {vu_set_vring_base, {8}, 0, 0},
        {vu_get_vring_base, {8}, 0, 0},
        {vu_set_vring_kick, {8}, 0, 1},
        {vu_set_vring_call, {8}, 0, 1},
        {vu_set_vring_err, {8}, 0, 1},
        {vu_get_protocol_features, {0}, 0, 0},
        {vu_set_protocol_features, {8}, 0, 0},
        {vu_get_queue_num, {0}, 0, 0},
        {vu_set_vring_enable, {8}, 0, 0},
        {vu_set_backend_req_fd, {0}, 1, 1},
        {vu_get_config, config_lengths(), 0, 0},
        {vu_set_config, config_lengths(), 0, 0},
        {vu_get_inflight_fd, {20, 24}, 0, 0},
        {vu_set_inflight_fd, {20, 24}, 1, 1},
        {vu_reset_device, {0}, 0, 0},
        {vu_get_max_mem_slots, {0}, 0, 0},
        {vu_add_mem_reg, {40}, 1, 1},
        {vu_rem_mem_reg, {40}, 0, 1}, // one is tolerated, for old front ends
        {vu_set_status, {8}, 0, 0},
        {vu_get_status, {0}, 0, 0},
    };
    return all;
}

std::vector<int> borrow(const std::vector<unique_fd>& owned, size_t count) {
    std::vector<int> fds;
    for (size_t i = 0; i < count; i++) {
        fds.push_back(owned[i].get());
    }
    return fds;
}

std::vector<unique_fd> some_memfds(size_t count) {
    std::vector<unique_fd> fds;
    for (size_t i = 0; i < count; i++) {
        fds.push_back(make_memfd("hostile", 1 << 16));
    }
    return fds;
}

} // namespace

TEST_CASE("each message with a wrong length gets its client dropped or refused", "[hostile]") {
    vhost_user_setup setup;
    bool running = GENERATE(false, true);
    std::vector<unique_fd> fds = some_memfds(1);
    for (const request_form& form : forms()) {
        for (uint32_t length : {0u, 1u, 7u, 9u, 11u, 19u, 39u, 41u, 265u, 269u, 4096u}) {
            if (std::find(form.lengths.begin(), form.lengths.end(), length) != form.lengths.end()) {
                continue;
            }
            INFO("request " << form.request << " length " << length << " running " << running);
            attacker bad(setup.victim(), running);
            std::vector<std::byte> payload(length);
            try {
                bad.client().send(form.request, vu_version | vu_need_reply, payload,
                                  borrow(fds, form.min_fds));
                CHECK(refused_or_dropped(bad.client()));
            } catch (const disconnected&) {
                // Dropped before we had sent all of it.
            }
        }
        INFO("request " << form.request << " of 4 GiB");
        attacker bad(setup.victim(), running);
        bad.client().send_bytes(bytes_of(vu_header{form.request, vu_version, ~uint32_t{0}}));
        CHECK(bad.client().dropped());
        setup.check_alive();
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("each message with a wrong number of descriptors gets its client dropped or refused",
          "[hostile]") {
    vhost_user_setup setup;
    bool running = GENERATE(false, true);
    std::vector<unique_fd> fds = some_memfds(32);
    for (const request_form& form : forms()) {
        for (unsigned count : {0u, 1u, 2u, 9u, 32u}) {
            if (count >= form.min_fds && count <= form.max_fds) {
                continue;
            }
            INFO("request " << form.request << " descriptors " << count << " running " << running);
            attacker bad(setup.victim(), running);
            std::vector<std::byte> payload(form.lengths.back());
            bad.client().send(form.request, vu_version | vu_need_reply, payload,
                              borrow(fds, count));
            CHECK(refused_or_dropped(bad.client()));
        }
        setup.check_alive();
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("the descriptors that a message says it has must be those that it has", "[hostile]") {
    vhost_user_setup setup;
    unique_fd event = make_eventfd();
    int fd = event.get();
    for (uint32_t request : {vu_set_vring_kick, vu_set_vring_call, vu_set_vring_err}) {
        INFO("request " << request);
        attacker none(setup.victim(), true);
        none.client().send(request, vu_version | vu_need_reply, bytes_of(uint64_t{0}));
        CHECK(refused_or_dropped(none.client()));
        none.guest.reset();
        attacker both(setup.victim(), true);
        both.client().send(request, vu_version | vu_need_reply, bytes_of(uint64_t{vu_no_fd}),
                           std::span(&fd, 1));
        CHECK(refused_or_dropped(both.client()));
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("a queue index that the disk does not have is refused", "[hostile]") {
    vhost_user_setup setup;
    bool running = GENERATE(false, true);
    unique_fd event = make_eventfd();
    int fd = event.get();
    for (uint32_t index : {victim_queues, 63u, 64u, 255u, 256u, 0x80000000u, ~0u}) {
        INFO("index " << index << " running " << running);
        for (uint32_t request :
             {vu_set_vring_num, vu_set_vring_base, vu_get_vring_base, vu_set_vring_enable}) {
            INFO("request " << request);
            attacker bad(setup.victim(), running);
            bad.client().send(request, vu_version | vu_need_reply,
                              bytes_of(vu_vring_state{index, 1}));
            CHECK(refused_or_dropped(bad.client()));
        }
        {
            attacker bad(setup.victim(), running);
            bad.client().send(vu_set_vring_addr, vu_version | vu_need_reply,
                              bytes_of(vu_vring_addr{index, 0, 0, 0, 0, 0}));
            CHECK(refused_or_dropped(bad.client()));
        }
        for (uint32_t request : {vu_set_vring_kick, vu_set_vring_call, vu_set_vring_err}) {
            INFO("request " << request);
            attacker bad(setup.victim(), running);
            bad.client().send(request, vu_version | vu_need_reply,
                              bytes_of(uint64_t{index} & ~vu_no_fd), std::span(&fd, 1));
            // 256 without its flag bit is queue 0: legal.
            CHECK((refused_or_dropped(bad.client()) || index == 256));
        }
        setup.check_alive();
    }
    for (uint64_t value : {uint64_t{1} << 9, uint64_t{1} << 32, uint64_t{1} << 63}) {
        attacker bad(setup.victim(), running);
        bad.client().send(vu_set_vring_kick, vu_version | vu_need_reply, bytes_of(value),
                          std::span(&fd, 1));
        CHECK(refused_or_dropped(bad.client()));
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("values out of range are refused", "[hostile]") {
    vhost_user_setup setup;
    bool running = GENERATE(false, true);
    auto refuses = [&](uint32_t request, std::span<const std::byte> payload) {
        attacker bad(setup.victim(), running);
        bad.client().send(request, vu_version | vu_need_reply, payload);
        return refused_or_dropped(bad.client());
    };
    for (uint32_t size : {0u, 3u, 100u, 2 * victim_queue_size, 65536u, 0x80000080u, ~0u}) {
        INFO("queue size " << size);
        CHECK(refuses(vu_set_vring_num, bytes_of(vu_vring_state{0, size})));
    }
    CHECK(refuses(vu_set_vring_base, bytes_of(vu_vring_state{0, 65536})));
    CHECK(refuses(vu_set_vring_base, bytes_of(vu_vring_state{0, ~0u})));
    CHECK(refuses(vu_set_vring_enable, bytes_of(vu_vring_state{0, 2})));
    CHECK(refuses(vu_set_vring_addr, bytes_of(vu_vring_addr{0, 2, 0, 0, 0, 0})));
    CHECK(refuses(vu_set_features, bytes_of(~uint64_t{0})));
    CHECK(refuses(vu_set_protocol_features, bytes_of(~uint64_t{0})));
    CHECK(refuses(vu_set_status, bytes_of(uint64_t{256})));
    CHECK(refuses(vu_get_inflight_fd, bytes_of(vu_inflight{0, 0, 0, 0, 0})));
    CHECK(refuses(vu_get_inflight_fd, bytes_of(vu_inflight{0, 0, 65535, 65535, 0})));
    CHECK(refuses(vu_get_inflight_fd, bytes_of(vu_inflight{0, 0, 1, 3, 0})));
    for (auto [offset, size] : {std::pair{257u, 1u},
                                {256u, 1u},
                                {~0u, 1u},
                                {0u, 257u},
                                {0u, ~0u},
                                {~0u - 3, 8u},
                                {255u, 2u}}) {
        INFO("config offset " << offset << " size " << size);
        vu_config config{};
        config.offset = offset;
        config.size = size;
        CHECK(refuses(vu_get_config, bytes_of(config).first(12 + std::min(size, 256u))));
        CHECK(refuses(vu_set_config, bytes_of(config).first(12 + std::min(size, 256u))));
    }
    // The size inside is not the size of the message.
    vu_config config{};
    config.size = 64;
    CHECK(refuses(vu_get_config, bytes_of(config).first(12 + 8)));
    config.offset = 32;
    config.size = 1;
    CHECK(refuses(vu_set_config, bytes_of(config).first(12 + 8)));
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("wrong flags, versions and unknown messages get the client dropped or refused",
          "[hostile]") {
    vhost_user_setup setup;
    for (uint32_t flags : {0u, 2u, 3u, vu_version | vu_reply, vu_version | 16u, ~0u}) {
        INFO("flags " << flags);
        attacker bad(setup.victim(), true);
        bad.client().send(vu_get_features, flags);
        CHECK(bad.client().dropped());
        setup.check_alive();
    }
    for (uint32_t request : {0u, 19u, 20u, 22u, 23u, 26u, 27u, 28u, 29u, 30u, 33u, 35u, 41u, 42u,
                             43u, 44u, 1000u, ~0u}) {
        for (uint32_t flags : {vu_version + 0u, vu_version | vu_need_reply}) {
            INFO("request " << request << " flags " << flags);
            attacker bad(setup.victim(), true);
            bad.client().send(request, flags, bytes_of(uint64_t{0}));
            CHECK(refused_or_dropped(bad.client()));
        }
        setup.check_alive();
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("a whole session in one-byte pieces is understood", "[hostile]") {
    vhost_user_setup setup;
    vhost_user_client client(setup.victim());
    unique_fd memory = make_memfd("guest", 1 << 20);
    auto send_slowly = [&client](uint32_t request, std::span<const std::byte> payload,
                                 std::span<const int> fds) {
        vu_header header{request, vu_version, static_cast<uint32_t>(payload.size())};
        for (std::span<const std::byte> part : {bytes_of(header), payload}) {
            for (std::byte byte : part) {
                client.send_bytes(std::span(&byte, 1), fds);
                fds = {};
                usleep(50);
            }
        }
    };
    send_slowly(vu_get_features, {}, {});
    CHECK(client.receive().header.request == vu_get_features);
    send_slowly(vu_set_protocol_features, bytes_of(bit(vu_feature_reply_ack)), {});
    vu_mem_table table{};
    table.count = 1;
    table.regions[0] = {0, 1 << 20, 0x10000000, 0};
    int fd = memory.get();
    send_slowly(vu_set_mem_table, bytes_of(table).first(40), std::span(&fd, 1));
    send_slowly(vu_get_features, {}, {});
    CHECK(client.receive().header.request == vu_get_features);
    client.close();
    setup.check_serving();
}

TEST_CASE("a client that falls silent within a message holds up nobody else", "[hostile]") {
    vhost_user_setup setup;
    for (size_t bytes : {size_t{1}, size_t{11}, size_t{12}, size_t{20}, size_t{51}}) {
        INFO(bytes << " bytes");
        attacker silent(setup.victim(), true);
        struct {
            vu_header header{vu_set_vring_addr, vu_version, sizeof(vu_vring_addr)};
            std::byte payload[40]{};
        } message;
        silent.client().send_bytes(bytes_of(message).first(bytes));
        usleep(20000);
        // Its own queues, and the control socket, go on as well.
        CHECK(silent.guest->driver.flush().status == blk_ok);
        CHECK(setup.daemon().control().result({{"op", "disk_list"}}).size() == 2);
        silent.guest.reset();
        setup.check_alive();
    }
    setup.check_serving();
}

TEST_CASE("a client that does not read its replies is dropped", "[hostile]") {
    vhost_user_setup setup;
    attacker bad(setup.victim(), true);
    bool gone = false;
    try {
        for (int i = 0; i < 200000; i++) {
            bad.client().send(vu_get_features, vu_version);
        }
    } catch (const disconnected&) {
        gone = true;
    }
    CHECK(gone);
    bad.guest.reset();
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("any number of messages that need no reply are handled", "[hostile]") {
    vhost_user_setup setup;
    attacker bad(setup.victim(), false);
    // A table without regions, which is a good one, as often as it fits into the socket at once.
    struct {
        vu_header header{vu_set_mem_table, vu_version, 8};
        uint32_t regions = 0, padding = 0;
    } const message;
    std::vector<std::byte> all;
    for (int i = 0; i < 20000; i++) {
        const auto bytes = bytes_of(message);
        all.insert(all.end(), bytes.begin(), bytes.end());
    }
    bad.client().send_bytes(all);
    bad.client().send(vu_get_features, vu_version);
    CHECK(bad.client().receive().header.request == vu_get_features);
    bad.client().close();
    setup.check_serving();
}

TEST_CASE("ten thousand random messages do no harm", "[hostile]") {
    vhost_user_setup setup;
    random_source random(test_seed(610));
    std::vector<unique_fd> fds = some_memfds(4);
    fds.push_back(make_eventfd());
    fds.push_back(make_eventfd());
    std::optional<attacker> bad;
    uint64_t connections = 0;
    for (uint64_t i = 0; i < scaled(10000, 500); i++) {
        INFO("message " << i);
        if (!bad) {
            bad.emplace(setup.victim(), random.chance(70));
            connections++;
        }
        // Mostly right in form, so that they get far.
        const request_form& form = forms()[random.below(forms().size())];
        uint32_t request =
            random.chance(97) ? form.request : static_cast<uint32_t>(random.below(60));
        uint32_t flags = random.chance(50) ? vu_version | vu_need_reply : vu_version + 0u;
        flags = random.chance(99) ? flags : static_cast<uint32_t>(random.next());
        uint64_t length =
            random.chance(97) ? form.lengths[random.below(form.lengths.size())] : random.below(600);
        std::vector<std::byte> payload(length);
        for (size_t at = 0; at + 4 <= payload.size(); at += 4) {
            uint32_t word = random.chance(60)   ? static_cast<uint32_t>(random.below(4))
                            : random.chance(60) ? uint32_t{1} << random.below(32)
                                                : static_cast<uint32_t>(random.next());
            std::memcpy(payload.data() + at, &word, 4);
        }
        std::vector<int> sent;
        for (uint64_t n = random.between(form.min_fds, form.max_fds); n > 0; n--) {
            sent.push_back(fds[random.below(fds.size())].get());
        }
        try {
            bad->client().send(request, flags, payload, sent);
            // Mostly in step with the daemon, so that what follows meets the state that this made.
            milliseconds patience((flags & vu_need_reply) != 0 ? 10 : random.chance(20) ? 1 : 0);
            std::array<std::byte, 4096> replies;
            while (wait_readable(bad->client().fd(), deadline(patience))) {
                if (read(bad->client().fd(), replies.data(), replies.size()) <= 0) {
                    throw disconnected("dropped");
                }
                patience = milliseconds(0);
            }
        } catch (const disconnected&) {
            bad.reset();
        }
        if (i % 500 == 499) {
            bad.reset();
            setup.check_alive();
        }
    }
    bad.reset();
    CHECK(connections > 1);
    setup.check_serving();
    setup.check_nothing_leaked();
}

} // namespace vql::guest
