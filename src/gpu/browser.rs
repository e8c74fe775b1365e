//! Devices of browsers, as far as wgpu 30 does not describe them: it never reports or requests subgroups, and leaves out
//! vendor and architecture. This file goes when wgpu does both (gfx-rs/wgpu#8819).

#[cfg(target_family = "wasm")]
use crate::wgsl::DeviceClass;

/// Features and description of a device.
pub(super) fn describe(device: &wgpu::Device) -> (wgpu::Features, wgpu::AdapterInfo) {
    let (features, info) = (device.features(), device.adapter_info());
    #[cfg(target_family = "wasm")]
    if let Some(device) = device.as_webgpu() {
        let subgroups = if device.features().has("subgroups") { wgpu::Features::SUBGROUP } else { wgpu::Features::empty() };
        let own = device.adapter_info();
        let class =
            if own.is_fallback_adapter() { DeviceClass::Software } else { DeviceClass::of_browser(&own.vendor(), &own.architecture()) };
        let device_type = match class {
            DeviceClass::Software => wgpu::DeviceType::Cpu,
            DeviceClass::Discrete => wgpu::DeviceType::DiscreteGpu,
            DeviceClass::Integrated => wgpu::DeviceType::IntegratedGpu,
        };
        let words = [own.vendor(), own.architecture(), own.device(), own.description()];
        let name = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        return (features | subgroups, wgpu::AdapterInfo { name, device_type, ..info });
    }
    (features, info)
}

/// Calls `request`, which requests a device of wgpu. In a browser the device gets subgroups too, where the adapter has
/// them: for the duration of the call, `GPUAdapter.requestDevice` adds the feature. Nothing else runs meanwhile.
pub(super) fn with_subgroups<T>(request: impl FnOnce() -> T) -> T {
    #[cfg(target_family = "wasm")]
    {
        let replaced = patch::Patch::new();
        if let Err(why) = &replaced {
            log::warn!("no subgroups can be requested: {why:?}");
        }
        request()
    }
    #[cfg(not(target_family = "wasm"))]
    request()
}

#[cfg(target_family = "wasm")]
mod patch {
    use js_sys::{Array, Function, Object, Proxy, Reflect, Set};
    use wasm_bindgen::prelude::{Closure, JsCast, JsValue};

    /// Trap of calls: function, `this`, arguments.
    type Trap = dyn FnMut(Function, JsValue, Array) -> Result<JsValue, JsValue>;

    /// `GPUAdapter.prototype.requestDevice`, replaced while this lives.
    pub(super) struct Patch {
        prototype: JsValue,
        original: JsValue,
        _trap: Closure<Trap>,
    }

    impl Patch {
        pub(super) fn new() -> Result<Self, JsValue> {
            let prototype = Reflect::get(&Reflect::get(&js_sys::global(), &"GPUAdapter".into())?, &"prototype".into())?;
            let original = Reflect::get(&prototype, &"requestDevice".into())?;
            let trap = Closure::<Trap>::new(|target: Function, adapter: JsValue, arguments: Array| {
                add_subgroups(&adapter, &arguments.get(0))?;
                target.apply(&adapter, &arguments)
            });
            let handler = Object::new();
            Reflect::set(&handler, &"apply".into(), trap.as_ref())?;
            Reflect::set(&prototype, &"requestDevice".into(), &Proxy::new(&original, &handler))?;
            Ok(Self { prototype, original, _trap: trap })
        }
    }

    impl Drop for Patch {
        fn drop(&mut self) {
            // It could be set before, so it can be set back.
            let _ = Reflect::set(&self.prototype, &"requestDevice".into(), &self.original);
        }
    }

    /// Adds the feature to the descriptor, if the adapter has it.
    fn add_subgroups(adapter: &JsValue, descriptor: &JsValue) -> Result<(), JsValue> {
        let (subgroups, required) = ("subgroups".into(), "requiredFeatures".into());
        // A GPUSupportedFeatures is setlike.
        if Reflect::get(adapter, &"features".into())?.unchecked_into::<Set>().has(&subgroups) {
            let features = Array::from(&Reflect::get(descriptor, &required)?);
            features.push(&subgroups);
            Reflect::set(descriptor, &required, &features)?;
        }
        Ok(())
    }
}
