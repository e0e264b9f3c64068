// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/control.h"

#include "base/log.h"
#include "base/version.h"
#include "daemon/stats.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <utility>
#include <vector>

namespace vql {

using nlohmann::json;

namespace {

constexpr size_t max_line = 1 << 20;
constexpr size_t max_clients = 64;

json success(json value) {
    return {{"ok", true}, {"result", std::move(value)}};
}
json failure(const std::string& text) {
    return {{"ok", false}, {"error", text}};
}

// A key of a request, of the type wanted; nothing else may be in there.
struct request_error {
    std::string text;
};

template <class T>
T key(const json& request, const char* name, const char* type, bool (json::*is)() const noexcept) {
    const auto it = request.find(name);
    if (it == request.end())
        throw request_error{std::string(name) + ": missing (" + type + " expected)"};
    if (!((*it).*is)())
        throw request_error{std::string(name) + ": " + type + " expected"};
    return it->get<T>();
}

// One that may be left out, and is false then.
bool flag(const json& request, const char* name) {
    return request.contains(name) && key<bool>(request, name, "a boolean", &json::is_boolean);
}

void allow_keys(const json& request, std::initializer_list<const char*> names) {
    for (const auto& item : request.items())
        if (std::none_of(names.begin(), names.end(),
                         [&](const char* n) { return item.key() == n; }))
            throw request_error{item.key() + ": unknown key"};
}

} // namespace

control_socket::~control_socket() {
    while (!clients_.empty())
        close(std::shared_ptr(clients_.begin()->second)); // a reference of its own: the map's goes
    if (listener_) {
        loop_.remove(listener_.get());
        unlink(path_.c_str());
    }
}

result<void> control_socket::listen(const std::string& run_dir) {
    path_ = run_dir + "/control.sock";
    sockaddr_un addr{};
    addr.sun_family = AF_UNIX;
    if (path_.size() >= sizeof(addr.sun_path))
        return error{path_ + ": socket path longer than 107 bytes"};
    std::memcpy(addr.sun_path, path_.c_str(), path_.size() + 1);
    unlink(path_.c_str());
    unique_fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd || bind(fd.get(), reinterpret_cast<sockaddr*>(&addr), sizeof(addr)) < 0 ||
        chmod(path_.c_str(), 0600) < 0 || ::listen(fd.get(), 16) < 0)
        return errno_error(path_, errno);
    listener_ = std::move(fd);
    loop_.add(listener_.get(), EPOLLIN, [this](uint32_t) { accept_client(); });
    loop_.every_second([this] {
        look_for_room();
        tell_progress();
    });
    return {};
}

void control_socket::accept_client() {
    auto c = std::make_shared<client>();
    c->fd = spare_.accept(listener_.get()).fd;
    if (!c->fd && spare_.short_of()) { // it would be readable for ever
        loop_.modify(listener_.get(), 0);
        paused_ = true;
    }
    if (!c->fd || clients_.size() == max_clients)
        return;
    clients_[c->fd.get()] = c;
    loop_.add(c->fd.get(), EPOLLIN, [this, c](uint32_t events) { serve(c, events); });
}

void control_socket::close(const std::shared_ptr<client>& c) {
    if (!c->fd)
        return;
    loop_.remove(c->fd.get());
    clients_.erase(c->fd.get());
    c->fd.reset();
    if (const auto interrupted = std::exchange(c->interrupted, nullptr))
        interrupted();
    look_for_room();
}

// A descriptor may be free: keep one again, and let those in who wait.
void control_socket::look_for_room() {
    if (spare_.refill() && listener_ && std::exchange(paused_, false))
        loop_.modify(listener_.get(), EPOLLIN);
}

void control_socket::serve(const std::shared_ptr<client>& c, uint32_t events) {
    if (events & EPOLLOUT)
        send(c);
    if (!c->fd || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    std::array<char, 65536> buffer; // NOLINT: filled by the call
    const ssize_t n = recv(c->fd.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0)
        return close(c);
    c->in.append(buffer.data(), size_t(n));
    handle_lines(c);
}

void control_socket::handle_lines(const std::shared_ptr<client>& c) {
    while (c->fd && !c->waiting) {
        const size_t end = c->in.find('\n');
        if (end == std::string::npos) {
            if (c->in.size() > max_line) {
                reply(c, failure("request longer than 1 MiB"));
                close(c);
            }
            return;
        }
        const std::string line = c->in.substr(0, end);
        c->in.erase(0, end + 1);
        handle(c, line);
    }
}

void control_socket::handle(const std::shared_ptr<client>& c, const std::string& line) {
    c->waiting = true;
    json request = json::parse(line, nullptr, false);
    if (!request.is_object())
        return reply(c, failure("a request is one JSON object on one line"));
    try {
        c->about.clear();
        c->progress = request.contains("progress") &&
                      key<bool>(request, "progress", "a boolean", &json::is_boolean);
        request.erase("progress");
        dispatch(c, request);
    } catch (const request_error& e) {
        reply(c, failure(e.text));
    } catch (const json::exception& e) {
        reply(c, failure(e.what()));
    }
}

void control_socket::dispatch(const std::shared_ptr<client>& c, const json& request) {
    const auto op = key<std::string>(request, "op", "a string", &json::is_string);
    const auto finish = [this, c](result<void> ok) {
        reply(c, ok ? success(nullptr) : failure(ok.failure().text));
    };
    if (op == "version") { // also how a client tells a daemon that is at work from one that hangs
        allow_keys(request, {"op"});
        return reply(c, success({{"version", version()}}));
    }
    if (op == "disk_list") {
        allow_keys(request, {"op"});
        json list = json::array();
        for (const auto& e : server_.entries())
            list.push_back(describe(*e));
        return reply(c, success(list));
    }
    if (op == "disk_add") {
        json table = request;
        table.erase("op");
        table.erase("transient");
        const bool transient = flag(request, "transient");
        const std::string name = c->about =
            key<std::string>(request, "name", "a string", &json::is_string);
        c->interrupted = [this, name] { server_.interrupt_add(name); };
        return commands_.add(table, transient, [this, c, name](const result<void>& ok) {
            const disk_entry* e = server_.find_entry(name);
            reply(c, !ok ? failure(ok.failure().text)
                     : e ? success(describe(*e))
                         : failure("disk " + name + " was removed meanwhile"));
        });
    }
    if (op == "disk_rm") {
        allow_keys(request, {"op", "name", "force", "transient"});
        const bool force = flag(request, "force"), transient = flag(request, "transient");
        const auto name = c->about =
            key<std::string>(request, "name", "a string", &json::is_string);
        // By force it is also done when the disk is still closing.
        return commands_.remove(name, force, transient, [this, c, name](const result<void>& ok) {
            const disk_entry* e = ok ? server_.find_entry(name) : nullptr;
            reply(c, e    ? success(describe(*e))
                     : ok ? success(nullptr)
                          : failure(ok.failure().text));
        });
    }
    if (op == "disk_resize") {
        allow_keys(request, {"op", "name", "size", "transient"});
        const auto name = c->about =
            key<std::string>(request, "name", "a string", &json::is_string);
        const auto bytes =
            key<uint64_t>(request, "size", "a number of bytes", &json::is_number_unsigned);
        return commands_.resize(name, bytes, flag(request, "transient"), finish);
    }
    if (op == "reload") {
        allow_keys(request, {"op"});
        return commands_.reload([this, c](const result<json>& report) {
            reply(c, report ? success(*report) : failure(report.failure().text));
        });
    }
    if (op == "disk_policy") {
        allow_keys(request, {"op", "name", "object"});
        const auto name = key<std::string>(request, "name", "a string", &json::is_string);
        std::string object;
        if (!request.contains("object") || !request["object"].is_null()) { // null: none
            object = key<std::string>(request, "object", "a string", &json::is_string);
            if (object.empty() || object[0] != '/')
                return reply(c, failure("object: an absolute path expected"));
        }
        disk* d = server_.find(name);
        return d ? d->set_policy(object, finish)
                 : finish(error{"disk " + name + " does not exist"});
    }
    if (op == "stats") {
        allow_keys(request, {"op", "name", "histograms"});
        const bool histograms = request.contains("histograms") &&
                                key<bool>(request, "histograms", "a boolean", &json::is_boolean);
        std::string only;
        if (request.contains("name"))
            only = key<std::string>(request, "name", "a string", &json::is_string);
        if (!only.empty() && !server_.find(only))
            return reply(c, failure("disk " + only + " does not exist"));
        return reply(c, success(stats(only, histograms)));
    }
    reply(c, failure("op: " + op +
                     " is unknown (known: disk_list, disk_add, disk_rm, "
                     "disk_resize, disk_policy, reload, stats, version)"));
}

static json peer_entry(const std::optional<peer>& p) {
    return p ? json{{"pid", p->pid}, {"command", p->command}} : json(nullptr);
}

static const char* phase_name(disk_entry::phase p) {
    switch (p) {
    case disk_entry::phase::opening: return "opening";
    case disk_entry::phase::waiting: return "waiting";
    case disk_entry::phase::ready: return "ready";
    case disk_entry::phase::closing: return "closing";
    }
    return "";
}

// Of a disk that is not served the keys are the same; what is not known yet is 0, null or empty.
json control_socket::describe(const disk_entry& e) const {
    const disk* const d = e.served.get();
    const auto clients = d ? d->clients() : frontend::client_report();
    json targets = json::array();
    for (const extent_config& x : e.settings.extents)
        if (std::find(targets.begin(), targets.end(), x.target) == targets.end())
            targets.push_back(x.target);
    const bool vdpa = e.settings.frontend == frontend_type::vdpa;
    json lanes = json::array();
    for (uint32_t i = 0; d && i < e.settings.queues; i++) {
        const frontend::lane_report r = d->lane_of(i);
        lanes.push_back({{"lane", r.lane},
                         {"why", r.why},
                         {"kernel_requests", r.served},
                         {"kernel_refused", r.refused}});
    }
    return {{"name", e.settings.name},
            {"state", phase_name(e.now)},
            {"problem", server_.problem(e)},
            {"slot", d ? json(d->slot()) : json()},
            {"serial", disk_serial(e.settings)},
            {"frontend", vdpa ? "vdpa" : "vhost-user"},
            {vdpa ? "device" : "socket", d ? d->address() : e.socket},
            {"size", d ? d->layout().bytes : e.settings.bytes},
            {"read_only", e.settings.read_only},
            {"discard", d && d->layout().discard},
            {"queues", e.settings.queues},
            {"queue_size", e.settings.queue_size},
            {"chunk_size", d ? 1ull << d->layout().chunk_shift : e.settings.chunk_bytes},
            {"connected", d && d->connected()},
            {"client", peer_entry(clients.client)},
            {"refused_clients",
             {{"count", clients.refused}, {"last", peer_entry(clients.last_refused)}}},
            {"queues_running", d ? d->queues_running() : 0},
            {"lanes", lanes},
            {"pollers", d ? d->poller_cpus() : std::vector<int>()},
            {"targets", targets},
            {"policy", d ? d->policy() : ""}};
}

// A disk's statistics: of each lane, and of both.
static json disk_stats(const disk& d, bool histograms) {
    const vql_disk_stats poll = d.stats(VQL_LANE_POLL), kernel = d.stats(VQL_LANE_KERNEL);
    vql_disk_stats both = poll;
    add_stats(both, kernel);
    return {{"name", d.settings().name},
            {"ops", disk_figures(both, histograms)},
            {"lanes", {{"poll", disk_figures(poll)}, {"kernel", disk_figures(kernel)}}}};
}

json control_socket::stats(const std::string& only, bool histograms) const {
    json disks = json::array(), pollers = json::array();
    for (const auto& e : server_.entries())
        if (e->served && (only.empty() || e->settings.name == only))
            disks.push_back(disk_stats(*e->served, histograms));
    for (const auto& p : server_.pollers()) {
        const poller_stats& s = p->stats();
        pollers.push_back({{"cpu", p->cpu()},
                           {"requests", s.requests.load(std::memory_order_relaxed)},
                           {"wakeups", s.wakeups.load(std::memory_order_relaxed)},
                           {"sleeps", s.sleeps.load(std::memory_order_relaxed)},
                           {"busy_ns", s.busy_ns.load(std::memory_order_relaxed)}});
    }
    return {{"disks", disks}, {"pollers", pollers}};
}

void control_socket::reply(const std::shared_ptr<client>& c, const json& value) {
    c->interrupted = nullptr;
    if (!c->fd)
        return;
    // Names in errors come from clients: whatever bytes they hold, the reply is JSON.
    c->out += value.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
    c->waiting = false;
    send(c);
    // What came behind a request that had to wait.
    loop_.post([this, c] {
        if (c->fd)
            handle_lines(c);
    });
}

// Once a second: clients that asked for it learn what their request waits for, and that we live.
void control_socket::tell_progress() {
    for (const auto& c : [this] {
             std::vector<std::shared_ptr<client>> all; // send() may end one
             for (const auto& [fd, c] : clients_)
                 all.push_back(c);
             return all;
         }()) {
        if (!c->waiting || !c->progress || !c->out.empty())
            continue;
        const disk_entry* const e = server_.find_entry(c->about);
        const std::string text = e ? server_.problem(*e) : "";
        c->out =
            json{{"waiting", text}}.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
        send(c);
    }
}

void control_socket::send(const std::shared_ptr<client>& c) {
    const ssize_t n = ::send(c->fd.get(), c->out.data(), c->out.size(), MSG_NOSIGNAL);
    if (n > 0)
        c->out.erase(0, size_t(n));
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
        return close(c);
    // Who does not read replies is not read from either.
    loop_.modify(c->fd.get(), c->out.empty() ? uint32_t{EPOLLIN} : uint32_t{EPOLLOUT});
}

} // namespace vql
