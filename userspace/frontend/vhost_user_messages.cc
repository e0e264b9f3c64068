// SPDX-License-Identifier: GPL-2.0-only
// What each vhost-user message does, once the queues it concerns stand still. Numbers from the
// client are checked here, before anything changes.
#include "frontend/vhost_user.h"

#include <algorithm>
#include <array>
#include <climits>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <sys/socket.h>
#include <vqlane/limits.h>

namespace vql {

using namespace vhost_user;

namespace {

constexpr uint64_t offered_protocol_features =
    1u << PROTOCOL_F_MQ | 1u << PROTOCOL_F_LOG_SHMFD | 1u << PROTOCOL_F_REPLY_ACK |
    1u << PROTOCOL_F_BACKEND_REQ | 1u << PROTOCOL_F_CONFIG | 1u << PROTOCOL_F_INFLIGHT_SHMFD |
    1u << PROTOCOL_F_RESET_DEVICE | 1u << PROTOCOL_F_CONFIGURE_MEM_SLOTS | 1u << PROTOCOL_F_STATUS;

uint64_t offered_features(const blk_geometry& g) {
    return blk_features(g) | 1ull << F_LOG_ALL | 1ull << F_PROTOCOL_FEATURES;
}

// Only an eventfd is known to take a write and give a poll without ever blocking us.
bool make_eventfd_usable(const unique_fd& fd) {
    std::array<char, 64> text{};
    const std::string link = "/proc/self/fd/" + std::to_string(fd.get());
    const ssize_t n = readlink(link.c_str(), text.data(), text.size() - 1);
    if (n < 0 || std::string(text.data(), size_t(n)) != "anon_inode:[eventfd]")
        return false;
    const int flags = fcntl(fd.get(), F_GETFL);
    return flags >= 0 && fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) == 0;
}

} // namespace

vhost_user_server::outcome vhost_user_server::refuse(std::string why) {
    outcome o;
    o.refusal = std::move(why);
    return o;
}

template <class T>
vhost_user_server::outcome vhost_user_server::reply(const T& value) {
    outcome o;
    o.has_reply = true;
    o.reply.resize(sizeof(T));
    std::memcpy(o.reply.data(), &value, sizeof(T));
    return o;
}
template vhost_user_server::outcome vhost_user_server::reply(const uint64_t&);

vhost_user_server::vring* vhost_user_server::ring_at(uint64_t index) {
    return index < rings_.size() ? rings_[index].get() : nullptr;
}

bool vhost_user_server::memory_message(uint32_t request) const {
    return request == SET_MEM_TABLE || request == ADD_MEM_REG || request == REM_MEM_REG;
}

std::vector<frontend::ring_state*> vhost_user_server::rings_to_stop(const message& m) {
    std::vector<ring_state*> rings;
    switch (m.head.request) {
    case SET_STATUS:
        if (m.as<uint64_t>() != 0)
            break;
        [[fallthrough]];
    case SET_FEATURES:
    case RESET_OWNER:
    case RESET_DEVICE:
    case SET_LOG_BASE:
    case SET_INFLIGHT_FD:
    case SET_CONFIG:
    case SET_MEM_TABLE:
    case ADD_MEM_REG:
    case REM_MEM_REG: rings = all_rings(); break;
    case SET_VRING_NUM:
    case SET_VRING_ADDR:
    case SET_VRING_BASE:
    case GET_VRING_BASE:
    case SET_VRING_ENABLE:
        if (vring* r = ring_at(m.as<vring_state>().index))
            rings.push_back(r);
        break;
    case SET_VRING_KICK:
        if (vring* r = ring_at(m.as<uint64_t>() & VRING_IDX_MASK))
            rings.push_back(r);
        break;
    default: break;
    }
    std::erase_if(rings, [](ring_state* r) { return !r->running; });
    return rings;
}

vhost_user_server::outcome vhost_user_server::apply(message& m) {
    switch (m.head.request) {
    case GET_FEATURES: return reply(uint64_t{offered_features(host_.geometry())});
    case SET_FEATURES: return set_features(m.as<uint64_t>());
    case GET_PROTOCOL_FEATURES: return reply(uint64_t{offered_protocol_features});
    case SET_PROTOCOL_FEATURES:
        if (m.as<uint64_t>() & ~offered_protocol_features)
            return refuse("protocol features that were not offered");
        protocol_features_ = m.as<uint64_t>();
        return {};
    case SET_OWNER: return {};
    case GET_QUEUE_NUM: return reply(uint64_t{rings_.size()});
    case GET_MAX_MEM_SLOTS: return reply(uint64_t{VQL_MAX_REGIONS});
    case SET_MEM_TABLE: return set_mem_table(m);
    case ADD_MEM_REG:
    case REM_MEM_REG: {
        const mem_region r = m.as<single_region>().region;
        const memory_slot slot{r.guest, r.bytes, r.vmm, r.file_offset};
        auto ok =
            m.head.request == ADD_MEM_REG ? memory_.add(slot, m.fds[0]) : memory_.remove(slot);
        return ok ? outcome{} : refuse(ok.failure().text);
    }
    case SET_LOG_BASE: return set_log_base(m);
    case SET_LOG_FD: // we log without telling; a payload is not specified, yet sent by some
        return m.head.size == 0 || m.head.size == sizeof(uint64_t) ? outcome{}
                                                                   : refuse("wrong length");
    case SET_BACKEND_REQ_FD: {
        int type = 0;
        socklen_t size = sizeof(type);
        if (getsockopt(m.fds[0].get(), SOL_SOCKET, SO_TYPE, &type, &size) < 0)
            return refuse("not a socket");
        backend_req_ = std::move(m.fds[0]);
        return {};
    }
    case GET_CONFIG: return get_config(m);
    case SET_CONFIG: return set_config(m);
    case GET_INFLIGHT_FD: return get_inflight(m);
    case SET_INFLIGHT_FD: return set_inflight(m);
    case SET_STATUS:
        if (m.as<uint64_t>() > 0xff)
            return refuse("status has 8 bits");
        if (m.as<uint64_t>() == 0)
            reset_rings();
        status_ = uint8_t(m.as<uint64_t>() | (status_ & VIRTIO_CONFIG_S_NEEDS_RESET));
        return {};
    case GET_STATUS: return reply(uint64_t{status_});
    case RESET_OWNER:
    case RESET_DEVICE: reset_rings(); return {};
    default: return apply_vring(m);
    }
}

vhost_user_server::outcome vhost_user_server::apply_vring(message& m) {
    if (m.head.request == SET_VRING_ADDR)
        return set_vring_addr(m.as<vring_addr>());
    if (m.head.request == SET_VRING_KICK || m.head.request == SET_VRING_CALL ||
        m.head.request == SET_VRING_ERR)
        return set_vring_fd(m);

    const auto s = m.as<vring_state>();
    vring* r = ring_at(s.index);
    if (!r)
        return refuse("queue " + std::to_string(s.index) + " does not exist");
    switch (m.head.request) {
    case SET_VRING_NUM:
        if (!vql_queue_size_valid(s.num) || s.num > host_.geometry().queue_size)
            return refuse("queue size " + std::to_string(s.num) + " is not a power of two up to " +
                          std::to_string(host_.geometry().queue_size));
        r->num = s.num;
        return {};
    case SET_VRING_BASE:
        if (s.num > 0xffff)
            return refuse("ring index beyond 65535");
        r->base = uint16_t(s.num);
        r->vq.ring_error = 0;
        return {};
    case GET_VRING_BASE:
        r->kick_set = false;
        r->vq.ring_error = 0;
        size_told_ = false; // it may be another guest's state that starts next
        return reply(vring_state{s.index, r->base});
    case SET_VRING_ENABLE:
        if (s.num > 1)
            return refuse("neither 0 nor 1");
        r->enabled = s.num == 1;
        return {};
    default: return refuse("unexpected message");
    }
}

vhost_user_server::outcome vhost_user_server::set_features(uint64_t features) {
    if (features & ~offered_features(host_.geometry()))
        return refuse("features that were not offered");
    features_ = features;
    return {};
}

vhost_user_server::outcome vhost_user_server::set_mem_table(message& m) {
    const auto table = m.as<mem_table>();
    if (table.nregions > max_table_regions || m.fds.size() != table.nregions ||
        m.head.size != offsetof(mem_table, region) + table.nregions * sizeof(mem_region))
        return refuse("wrong number of regions or descriptors");
    memory_.clear();
    for (uint32_t i = 0; i < table.nregions; i++) {
        const mem_region& r = table.region[i];
        if (auto ok = memory_.add({r.guest, r.bytes, r.vmm, r.file_offset}, m.fds[i]); !ok) {
            memory_.clear();
            return refuse(ok.failure().text);
        }
    }
    return {};
}

vhost_user_server::outcome vhost_user_server::set_vring_addr(const vring_addr& a) {
    vring* r = ring_at(a.index);
    if (!r)
        return refuse("queue " + std::to_string(a.index) + " does not exist");
    if (a.flags & ~VRING_F_LOG)
        return refuse("unknown flags");
    if (a.desc % 16 || a.avail % 2 || a.used % 4)
        return refuse("ring is misaligned");
    r->addr = a;
    return {};
}

vhost_user_server::outcome vhost_user_server::set_vring_fd(message& m) {
    const auto value = m.as<uint64_t>();
    vring* r = ring_at(value & VRING_IDX_MASK);
    if (!r || value & ~(VRING_IDX_MASK | VRING_NOFD))
        return refuse("queue does not exist");
    if (m.fds.empty() != bool(value & VRING_NOFD))
        return refuse("wrong number of file descriptors");
    if (!m.fds.empty() && !make_eventfd_usable(m.fds[0]))
        return refuse("file descriptor is not an eventfd");
    unique_fd fd = m.fds.empty() ? unique_fd() : std::move(m.fds[0]);
    virtqueue& q = r->vq;

    if (m.head.request == SET_VRING_KICK) { // the ring stands still
        q.kick = std::move(fd);
        r->kick_set = true;
        return {};
    }
    if (m.head.request == SET_VRING_ERR) { // the control thread's own
        q.err = std::move(fd);
        return {};
    }
    if (!r->running) {
        q.call = std::move(fd);
        return {};
    }
    // Interrupt vectors are masked and unmasked while the ring runs: no reason to drain it.
    host_.set_call(q, std::move(fd));
    return {};
}

vhost_user_server::outcome vhost_user_server::get_config(const message& m) {
    const auto c = m.as<config_space>();
    outcome o = reply(c);
    if (c.size > max_config_bytes || c.offset > max_config_bytes - c.size ||
        m.head.size != config_header_bytes + c.size) {
        o.reply.clear(); // the specification's way to say no
        return o;
    }
    std::array<uint8_t, max_config_bytes> space{};
    blk_geometry geometry = host_.geometry();
    for (const auto& r : rings_) // the driver's rings may be smaller, as far as they are known
        if (r->num)
            geometry.queue_size = std::min(geometry.queue_size, r->num);
    const virtio_blk_config blk = blk_config(geometry, writeback_);
    static_assert(sizeof(blk) <= sizeof(space));
    std::memcpy(space.data(), &blk, sizeof(blk));
    o.reply.resize(config_header_bytes + c.size);
    std::memcpy(o.reply.data() + config_header_bytes, space.data() + c.offset, c.size);
    return o;
}

vhost_user_server::outcome vhost_user_server::set_config(const message& m) {
    const auto c = m.as<config_space>();
    // The one field a driver may write is writeback (virtio 1.3 §5.2.4).
    if (c.offset != offsetof(virtio_blk_config, wce) || c.size != 1 ||
        m.head.size != config_header_bytes + 1)
        return refuse("only the writeback field can be set");
    if (c.data[0] > 1)
        return refuse("writeback is 0 or 1");
    writeback_ = c.data[0] == 1;
    return {};
}

vhost_user_server::outcome vhost_user_server::get_inflight(const message& m) {
    auto d = m.as<inflight_request>();
    if (!d.queues || d.queues > rings_.size() || !vql_queue_size_valid(d.queue_size)) {
        d.bytes = 0; // no region: the client goes on without
        return reply(d);
    }
    auto fd = inflight_region::create(d.queues);
    if (!fd)
        return refuse(fd.failure().text);
    d.bytes = inflight_region::bytes(d.queues);
    d.offset = 0;
    outcome o = reply(d);
    o.reply_fd = fd->release();
    return o;
}

vhost_user_server::outcome vhost_user_server::set_inflight(message& m) {
    const auto d = m.as<inflight_request>();
    auto region = std::make_unique<inflight_region>();
    if (auto ok = region->open(m.fds[0], d.bytes, d.offset, d.queues, d.queue_size); !ok)
        return refuse(ok.failure().text);
    inflight_ = std::move(region);
    return {};
}

vhost_user_server::outcome vhost_user_server::set_log_base(message& m) {
    const auto d = m.as<log_desc>();
    auto log = std::make_unique<dirty_log>();
    if (auto ok = log->open(m.fds[0], d.bytes, d.offset); !ok)
        return refuse(ok.failure().text);
    log_ = std::move(log);
    if (protocol_features_ & (1u << PROTOCOL_F_LOG_SHMFD))
        return reply(uint64_t{0});
    return {};
}

} // namespace vql
