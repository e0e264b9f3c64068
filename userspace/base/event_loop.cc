// SPDX-License-Identifier: GPL-2.0-only
#include "base/event_loop.h"

#include <array>
#include <cerrno>
#include <stdexcept>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <system_error>

namespace vql {

event_loop::event_loop()
    : epoll_(epoll_create1(EPOLL_CLOEXEC)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!epoll_ || !wake_)
        throw std::system_error(errno, std::generic_category(), "cannot create the event loop");
    add(wake_.get(), EPOLLIN, [this](uint32_t) {
        uint64_t count = 0;
        [[maybe_unused]] ssize_t n = ::read(wake_.get(), &count, sizeof(count));
        run_posted();
    });
}

void event_loop::add(int fd, uint32_t events, callback cb) {
    epoll_event ev{};
    ev.events = events;
    ev.data.fd = fd;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &ev) < 0)
        throw std::system_error(errno, std::generic_category(), "epoll_ctl");
    callbacks_[fd] = std::make_shared<callback>(std::move(cb));
}

void event_loop::modify(int fd, uint32_t events) {
    epoll_event ev{};
    ev.events = events;
    ev.data.fd = fd;
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &ev);
}

void event_loop::remove(int fd) {
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    callbacks_.erase(fd);
}

void event_loop::post(std::function<void()> fn) {
    {
        std::lock_guard lock(mutex_);
        posted_.push_back(std::move(fn));
    }
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t n = ::write(wake_.get(), &one, sizeof(one));
}

void event_loop::every_second(std::function<void()> tick) {
    unique_fd timer(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    itimerspec spec{};
    spec.it_interval.tv_sec = 1;
    spec.it_value.tv_sec = 1;
    const int fd = timer.get();
    if (!timer || timerfd_settime(fd, 0, &spec, nullptr) < 0)
        throw std::system_error(errno, std::generic_category(), "timerfd");
    add(fd, EPOLLIN, [fd, tick = std::move(tick)](uint32_t) {
        uint64_t count = 0;
        [[maybe_unused]] ssize_t n = ::read(fd, &count, sizeof(count));
        tick();
    });
    timers_.push_back(std::move(timer));
}

void event_loop::run_posted() {
    std::vector<std::function<void()>> now;
    {
        std::lock_guard lock(mutex_);
        now.swap(posted_);
    }
    for (auto& fn : now)
        fn();
}

void event_loop::run_once(int timeout_ms) {
    std::array<epoll_event, 64> events{};
    const int n = epoll_wait(epoll_.get(), events.data(), int(events.size()), timeout_ms);
    for (int i = 0; i < n; i++) {
        auto it = callbacks_.find(events[size_t(i)].data.fd);
        if (it == callbacks_.end())
            continue;           // removed by an earlier callback of this round
        auto keep = it->second; // a callback may remove itself
        (*keep)(events[size_t(i)].events);
    }
}

void event_loop::run() {
    while (running_)
        run_once(-1);
}

} // namespace vql
