// SPDX-License-Identifier: GPL-2.0-only
#include "frontend/vhost_user_proto.h"

#include <algorithm>

namespace vql::vhost_user {

namespace {

struct rule {
    request_type type;
    const char* name;
    uint32_t min_size, max_size;
    size_t min_fds, max_fds;
};

constexpr uint32_t u64_size = sizeof(uint64_t);
constexpr std::array rules = {
    rule{GET_FEATURES, "GET_FEATURES", 0, 0, 0, 0},
    rule{SET_FEATURES, "SET_FEATURES", u64_size, u64_size, 0, 0},
    rule{SET_OWNER, "SET_OWNER", 0, 0, 0, 0},
    rule{RESET_OWNER, "RESET_OWNER", 0, 0, 0, 0},
    rule{SET_MEM_TABLE, "SET_MEM_TABLE", 8, sizeof(mem_table), 0, max_table_regions},
    rule{SET_LOG_BASE, "SET_LOG_BASE", sizeof(log_desc), sizeof(log_desc), 1, 1},
    rule{SET_LOG_FD, "SET_LOG_FD", 0, u64_size, 1, 1},
    rule{SET_VRING_NUM, "SET_VRING_NUM", sizeof(vring_state), sizeof(vring_state), 0, 0},
    rule{SET_VRING_ADDR, "SET_VRING_ADDR", sizeof(vring_addr), sizeof(vring_addr), 0, 0},
    rule{SET_VRING_BASE, "SET_VRING_BASE", sizeof(vring_state), sizeof(vring_state), 0, 0},
    rule{GET_VRING_BASE, "GET_VRING_BASE", sizeof(vring_state), sizeof(vring_state), 0, 0},
    rule{SET_VRING_KICK, "SET_VRING_KICK", u64_size, u64_size, 0, 1},
    rule{SET_VRING_CALL, "SET_VRING_CALL", u64_size, u64_size, 0, 1},
    rule{SET_VRING_ERR, "SET_VRING_ERR", u64_size, u64_size, 0, 1},
    rule{GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES", 0, 0, 0, 0},
    rule{SET_PROTOCOL_FEATURES, "SET_PROTOCOL_FEATURES", u64_size, u64_size, 0, 0},
    rule{GET_QUEUE_NUM, "GET_QUEUE_NUM", 0, 0, 0, 0},
    rule{SET_VRING_ENABLE, "SET_VRING_ENABLE", sizeof(vring_state), sizeof(vring_state), 0, 0},
    rule{SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD", 0, 0, 1, 1},
    rule{GET_CONFIG, "GET_CONFIG", config_header_bytes, sizeof(config_space), 0, 0},
    rule{SET_CONFIG, "SET_CONFIG", config_header_bytes, sizeof(config_space), 0, 0},
    rule{GET_INFLIGHT_FD, "GET_INFLIGHT_FD", 20, sizeof(inflight_request), 0, 0},
    rule{SET_INFLIGHT_FD, "SET_INFLIGHT_FD", 20, sizeof(inflight_request), 1, 1},
    rule{RESET_DEVICE, "RESET_DEVICE", 0, 0, 0, 0},
    rule{GET_MAX_MEM_SLOTS, "GET_MAX_MEM_SLOTS", 0, 0, 0, 0},
    rule{ADD_MEM_REG, "ADD_MEM_REG", sizeof(single_region), sizeof(single_region), 1, 1},
    rule{REM_MEM_REG, "REM_MEM_REG", sizeof(single_region), sizeof(single_region), 0, 1},
    rule{SET_STATUS, "SET_STATUS", u64_size, u64_size, 0, 0},
    rule{GET_STATUS, "GET_STATUS", 0, 0, 0, 0},
};

const rule* find_rule(uint32_t request) {
    auto it = std::find_if(rules.begin(), rules.end(),
                           [&](const rule& r) { return uint32_t(r.type) == request; });
    return it == rules.end() ? nullptr : &*it;
}

} // namespace

const char* request_name(uint32_t request) {
    const rule* r = find_rule(request);
    return r ? r->name : "unknown message";
}

const char* check_message(const message& m) {
    const rule* r = find_rule(m.head.request);
    if (!r)
        return "unknown message type";
    if ((m.head.flags & VERSION_MASK) != VERSION)
        return "wrong protocol version";
    if (m.head.flags & ~uint32_t(VERSION_MASK | FLAG_NEED_REPLY))
        return "unexpected flags";
    if (m.head.size < r->min_size || m.head.size > r->max_size)
        return "wrong length";
    if (m.fds.size() < r->min_fds || m.fds.size() > r->max_fds)
        return "wrong number of file descriptors";
    return nullptr;
}

std::span<uint8_t> message_reader::want() {
    if (have_ < sizeof(header))
        return std::span(head_).subspan(have_);
    const size_t at = have_ - sizeof(header);
    return std::span(current_.payload).subspan(at, size_ - at);
}

void message_reader::got(size_t bytes, std::vector<unique_fd> fds) {
    have_ += bytes;
    for (unique_fd& fd : fds)
        current_.fds.push_back(std::move(fd));
    if (current_.fds.size() > max_message_fds)
        error_ = "more than 8 file descriptors in a message";
    if (have_ == sizeof(header)) {
        std::memcpy(&current_.head, head_.data(), sizeof(header));
        size_ = current_.head.size;
        if (size_ > max_payload_bytes)
            error_ = "message too long";
    }
}

message message_reader::take() {
    message m = std::move(current_);
    current_ = message{};
    have_ = 0;
    size_ = 0;
    return m;
}

} // namespace vql::vhost_user
