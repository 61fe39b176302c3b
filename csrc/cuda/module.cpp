// The module worldenv._cuda. Importing it loads the library; every op in csrc/cuda registers itself with torch as that
// happens, so the module itself is empty and nothing here lists the ops.
#include <Python.h>

PyMODINIT_FUNC PyInit__cuda(void) {
  static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cuda", "CUDA faces of the worldenv ops", -1,
                                      nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
