//! Carriers for known WebSocket stacks. They are a macro and not a feature: the macro expands in
//! the user's crate, so no stack, and no version of one, is a dependency of this crate.

/// Defines a [`Carrier`](crate::transport::Carrier) for the message type of a WebSocket stack.
///
/// The defined type is zero-sized, private unless a visibility is given, and named by the caller.
/// The macro names variants and methods, and converts payloads with `into`, so it fits several
/// versions of a stack.
///
/// # Message types with tungstenite's variants
///
/// tungstenite, tokio-tungstenite and axum: `Text`, `Binary`, `Ping`, `Pong` and `Close`. `close:`
/// is followed by the stack's close frame, a struct of `code` and `reason`.
///
/// ```
/// use kohakuriver_tunnel::carrier;
/// use kohakuriver_tunnel::transport::{Carrier, CloseReason, Received};
///
/// mod client {
///     use tokio_tungstenite::tungstenite;
///     kohakuriver_tunnel::carrier! {
///         /// For tungstenite.
///         pub Ws: tungstenite::Message, close: tungstenite::protocol::CloseFrame
///     }
/// }
/// carrier!(Axum: axum::extract::ws::Message, close: axum::extract::ws::CloseFrame);
///
/// let message = client::Ws.binary("hi".into());
/// assert_eq!(client::Ws.classify(message), Received::Message("hi".into()));
/// let close = Axum.close(1008, "unknown task").unwrap();
/// let reason = CloseReason::new(1008, "unknown task");
/// assert_eq!(Axum.classify(close), Received::End(Some(reason)));
/// ```
///
/// # tokio-websockets
///
/// Its message type hides its variants. `code:` is followed by its type of close codes.
///
/// ```
/// use kohakuriver_tunnel::carrier;
/// use kohakuriver_tunnel::transport::{Carrier, Received};
///
/// carrier!(Ws: tokio_websockets::Message, code: tokio_websockets::CloseCode);
///
/// let text = Ws.text("CONNECTED".into()).unwrap();
/// let Received::Text(text) = Ws.classify(text) else { panic!() };
/// assert_eq!(text, "CONNECTED");
/// ```
#[cfg_attr(docsrs, doc(cfg(feature = "transport")))]
#[macro_export]
macro_rules! carrier {
    ($(#[$meta:meta])* $vis:vis $name:ident: $message:ty, close: $frame:ty $(,)?) => {
        $crate::carrier!(@type $(#[$meta])* $vis $name $message);

        impl $crate::transport::Carrier for $name {
            type Message = $message;

            fn binary(&mut self, message: $crate::bytes::Bytes) -> $message {
                type CarrierMessage = $message;
                CarrierMessage::Binary(message.into())
            }

            fn classify(&mut self, message: $message) -> $crate::transport::Received<$message> {
                type CarrierMessage = $message;
                type CarrierReceived = $crate::transport::Received<$message>;
                match message {
                    CarrierMessage::Binary(message) => CarrierReceived::Message(message.into()),
                    CarrierMessage::Ping(_) | CarrierMessage::Pong(_) => CarrierReceived::Skip,
                    CarrierMessage::Text(text) => CarrierReceived::Text(text.as_str().into()),
                    CarrierMessage::Close(frame) => CarrierReceived::End(frame.map(|frame| {
                        $crate::transport::CloseReason::new(frame.code.into(), &*frame.reason)
                    })),
                    // Some stacks have a raw frame too.
                    #[allow(unreachable_patterns)]
                    other => CarrierReceived::Other(other),
                }
            }

            fn ping(&mut self) -> ::core::option::Option<$message> {
                type CarrierMessage = $message;
                let payload = ::core::default::Default::default();
                ::core::option::Option::Some(CarrierMessage::Ping(payload))
            }

            fn text(
                &mut self,
                text: $crate::transport::carrier_types::String,
            ) -> ::core::option::Option<$message> {
                type CarrierMessage = $message;
                ::core::option::Option::Some(CarrierMessage::Text(text.into()))
            }

            fn close(&mut self, code: u16, why: &str) -> ::core::option::Option<$message> {
                type CarrierMessage = $message;
                type CarrierFrame = $frame;
                let why = $crate::transport::CloseReason::cut(why);
                let why = $crate::transport::carrier_types::String::from(why);
                let frame = CarrierFrame {
                    code: code.into(),
                    reason: why.into(),
                };
                let frame = ::core::option::Option::Some(frame);
                ::core::option::Option::Some(CarrierMessage::Close(frame))
            }
        }
    };
    ($(#[$meta:meta])* $vis:vis $name:ident: $message:ty, code: $code:ty $(,)?) => {
        $crate::carrier!(@type $(#[$meta])* $vis $name $message);

        impl $crate::transport::Carrier for $name {
            type Message = $message;

            fn binary(&mut self, message: $crate::bytes::Bytes) -> $message {
                <$message>::binary(message)
            }

            fn classify(&mut self, message: $message) -> $crate::transport::Received<$message> {
                type CarrierReceived = $crate::transport::Received<$message>;
                if message.is_binary() {
                    return CarrierReceived::Message(message.into_payload().into());
                }
                if let ::core::option::Option::Some(text) = message.as_text() {
                    return CarrierReceived::Text(text.into());
                }
                if message.is_close() {
                    let close = message.as_close();
                    let close = close.map(|(code, text)| {
                        $crate::transport::CloseReason::new(code.into(), text)
                    });
                    // 1005 means that the frame has no code.
                    return CarrierReceived::End(close.filter(|close| close.code != 1005));
                }
                CarrierReceived::Skip
            }

            fn ping(&mut self) -> ::core::option::Option<$message> {
                ::core::option::Option::Some(<$message>::ping(""))
            }

            fn text(
                &mut self,
                text: $crate::transport::carrier_types::String,
            ) -> ::core::option::Option<$message> {
                ::core::option::Option::Some(<$message>::text(text))
            }

            fn close(&mut self, code: u16, why: &str) -> ::core::option::Option<$message> {
                // The stack panics on a code that may not be sent.
                let code = <$code>::try_from(code).ok().filter(|code| !code.is_reserved());
                let why = $crate::transport::CloseReason::cut(why);
                ::core::option::Option::Some(<$message>::close(code, why))
            }
        }
    };
    (@type $(#[$meta:meta])* $vis:vis $name:ident $message:ty) => {
        #[doc = ::core::concat!("Tunnel messages in `", ::core::stringify!($message), "`.")]
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default)]
        $vis struct $name;
    };
}

/// Used by [`carrier!`](crate::carrier!), whose users need not have `alloc`.
#[doc(hidden)]
pub mod carrier_types {
    pub use alloc::string::String;
}
