// worldenv._tabletop: many worlds stepped and drawn at once, numpy arrays at the border.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "render.h"
#include "world.h"

namespace py = pybind11;
using namespace worldenv::tabletop;
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

namespace {

constexpr int64_t kRow = sizeof(World) / sizeof(double);

template <typename T>
void expect(const Array<T>& a, std::vector<int64_t> shape, const char* name) {
  bool same = a.ndim() == int64_t(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = a.shape(i) == shape[i];
  if (same) return;
  std::string want = "[", got = "[";
  for (auto s : shape) want += std::to_string(s) + " ";
  for (int i = 0; i < a.ndim(); ++i) got += std::to_string(a.shape(i)) + " ";
  throw py::value_error(std::string(name) + " has shape " + got + "], expected " + want + "]");
}

class Simulator {
 public:
  Simulator(int64_t worlds, int size, int threads, Array<double> intrinsics, Array<double> extrinsics,
            Array<double> kinematics)
      : world_(worlds), threads_(threads), renderer_(size, check(intrinsics, 3), check(extrinsics, 4)) {
    expect(kinematics, {15}, "kinematics");
    std::memcpy(&kinematics_, kinematics.data(), sizeof(Kinematics));
    for (auto& w : world_) { std::memset(&w, 0, sizeof(World)); w.held = -1; w.aperture = 1; }
  }

  int64_t size() const { return int64_t(world_.size()); }

  Array<double> state() const {
    Array<double> out({size(), kRow});
    std::memcpy(out.mutable_data(), world_.data(), world_.size() * sizeof(World));
    return out;
  }

  void restore(const Array<double>& state, bool let_settle) {
    expect(state, {size(), kRow}, "state");
    std::memcpy(static_cast<void*>(world_.data()), state.data(), world_.size() * sizeof(World));
    if (let_settle) each([](World& w, int64_t) { settle(w); });
  }

  Array<bool> step(const Array<float>& actions, const Array<bool>& active) {
    expect(actions, {size(), 7}, "actions");
    expect(active, {size()}, "active");
    const float* a = actions.data();
    const bool* on = active.data();
    each([&](World& w, int64_t i) { if (on[i]) worldenv::tabletop::step(w, kinematics_, a + 7 * i); });
    return success();
  }

  Array<bool> success() const {
    Array<bool> out(size());
    for (int64_t i = 0; i < size(); ++i) {
      const World& w = world_[i];
      out.mutable_data()[i] = worldenv::tabletop::success(w, int(w.family), int(w.object), int(w.goal));
    }
    return out;
  }

  void render(Array<uint8_t>& frames, const Array<bool>& active) {
    const int64_t s = renderer_.size();
    expect(frames, {size(), s, s, 3}, "frames");
    expect(active, {size()}, "active");
    uint8_t* out = frames.mutable_data();
    const bool* on = active.data();
    each([&](World& w, int64_t i) {
      static thread_local Renderer::Canvas canvas;
      if (on[i]) renderer_.draw(w, canvas, out + i * s * s * 3);
    });
  }

 private:
  static const double* check(const Array<double>& matrix, int64_t n) {
    expect(matrix, {n, n}, "camera matrix");
    return matrix.data();
  }

  template <typename F>
  void each(F&& f) {  // worlds share nothing, so the split over threads changes no result
    py::gil_scoped_release release;
    const int64_t n = size(), parts = std::max<int64_t>(1, std::min<int64_t>(threads_, n / 8));
    std::vector<std::exception_ptr> failed(parts);  // none may leave a thread, and all threads must be joined
    const auto run = [&](int64_t part) noexcept {
      try {
        for (int64_t i = part * n / parts; i < (part + 1) * n / parts; ++i) f(world_[i], i);
      } catch (...) { failed[part] = std::current_exception(); }
    };
    std::vector<std::thread> pool;
    pool.reserve(parts);
    int64_t begun = 1;
    try {
      for (; begun < parts; ++begun) pool.emplace_back(run, begun);
    } catch (const std::system_error&) {}  // no memory for one more thread: this one does the rest
    run(0);
    for (int64_t part = begun; part < parts; ++part) run(part);
    for (auto& t : pool) t.join();
    for (const auto& error : failed) if (error) std::rethrow_exception(error);
  }

  std::vector<World> world_;
  int threads_;
  Renderer renderer_;
  Kinematics kinematics_;
};

}  // namespace

PYBIND11_MODULE(_tabletop, m) {
  m.attr("max_entities") = kMaxEntities;
  m.attr("row") = kRow;
  m.attr("finger_closed") = kFingerClosed;
  m.attr("finger_travel") = kFingerTravel;
  py::class_<Simulator>(m, "Simulator")
      .def(py::init<int64_t, int, int, Array<double>, Array<double>, Array<double>>())
      .def("__len__", &Simulator::size)
      .def("state", &Simulator::state)
      .def("restore", &Simulator::restore)
      .def("step", &Simulator::step)
      .def("success", &Simulator::success)
      .def("render", &Simulator::render);
}
